"""A script between OpenAI clients and llama.cpp, as such scripts are mostly written.

Flask's own server, a thread for each request, and `requests` towards the upstream, as in
llama.cpp's api_like_OAI.py. `python script.py PORT UPSTREAM`
"""

import json
import sys
import time

import requests
from flask import Flask, Response, request

app = Flask(__name__)
upstream = sys.argv[2]


def prompt_of(messages):
    told = ""
    for message in messages:
        name = {"system": "ASSISTANT's RULE: ", "user": "USER: ", "assistant": "ASSISTANT: "}
        told += "\\n" + name[message["role"]] + message["content"]
    return told + "\\nASSISTANT:"


@app.route("/v1/chat/completions", methods=["POST"])
def chat():
    body = request.get_json()
    asked = {"prompt": prompt_of(body["messages"]), "n_predict": body.get("max_tokens", -1)}
    if not body.get("stream"):
        told = requests.post(upstream + "/completion", json=asked).json()
        message = {"role": "assistant", "content": told["content"]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"object": "chat.completion", "created": int(time.time()), "choices": [choice]}

    def pieces():
        answer = requests.post(upstream + "/completion", json=asked | {"stream": True}, stream=True)
        for line in answer.iter_lines():
            if not line.startswith(b"data: "):
                continue
            told = json.loads(line[6:])
            reason = "stop" if told["stop"] else None
            choice = {"index": 0, "delta": {"content": told["content"]}, "finish_reason": reason}
            chunk = {"object": "chat.completion.chunk", "choices": [choice]}
            yield "data: " + json.dumps(chunk) + "\n\n"
        yield "data: [DONE]\n\n"

    return Response(pieces(), mimetype="text/event-stream")


@app.route("/health")
def health():
    return {"status": "ok"}


app.run("127.0.0.1", int(sys.argv[1]), threaded=True)
