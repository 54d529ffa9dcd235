"""What a server tells of itself, and what needs no generation."""

from __future__ import annotations

from typing import Any

from doubles.llama.native import N_CTX, PATH, defaults, settings
from doubles.llama.wire import Body, Call, Refused, json_type
from doubles.llama.words import text_of, tokens_of, tokens_of_prompt

_DIMENSIONS = 4


def page(call: Call) -> None:
    """The pages for browsers."""
    script = call.asked.path.endswith((".js", ".mjs"))
    call.whole(200, b"<html></html>", "text/javascript" if script else "text/html")


def health(call: Call) -> None:
    """`/health`, since b1809 (#4860)."""
    double, build = call.double, call.build
    if not 2178 <= build < 3599:  # #9056: again only what matters
        body = b'{"status": "ok"}' if build < 3599 else b'{"status":"ok"}'
        call.whole(200, body, "application/json" if build < 3599 else json_type(build))
        return
    told: Body = {
        "status": "ok",
        "slots_idle": _idle(call),
        "slots_processing": double.slots - _idle(call),
    }
    status = 200
    if not _idle(call):
        told["status"] = "no slot available"
        if build < 2214 or "fail_on_no_slot" in call.path:
            status = 503
    if "include_slots" in call.path:
        told["slots"] = _slots(call)
    call.json(told, status)


def _idle(call: Call) -> int:
    return 0 if call.double.busy else max(0, call.double.slots - call.double.working)


def props(call: Call) -> None:
    """`/props`."""
    build = call.build
    told: Body = {}
    if build < 2900:  # b2431 has the names, b2998 the prompt
        told |= {"user_name": "", "assistant_name": ""}
    elif build < 3910:
        told["system_prompt"] = ""
    if build >= 2067:
        told["default_generation_settings"] = _settings(build)
    if build >= 2086:
        told["total_slots"] = call.double.slots
    if build >= 3328:
        told["chat_template"] = call.double.template
    if build >= 4285:
        told["model_path"] = PATH
    call.json(told)


def _settings(build: int) -> Body:
    told = settings(build, defaults(build))
    if build < 4275:
        return told | {"seed": -1}
    return {
        "id": 0,
        "id_task": -1,
        "n_ctx": N_CTX,
        "speculative": False,
        "is_processing": False,
        "non_causal": False,
        "params": told,
        "prompt": "",
        "next_token": {"has_next_token": True, "n_remain": -1, "n_decoded": 0},
    }


def change_props(_: Call) -> None:
    """`POST /props`, which needs `--props`."""
    what = "This server does not support changing global properties. Start it with `--props`"
    raise Refused(501, what)


def model(call: Call) -> None:
    """`/model.json`, until b2084 (#5371)."""
    call.json(settings(call.build, defaults(call.build)))


def models(call: Call) -> None:
    """`/v1/models`, since b1561."""
    # The path of its file as long as nothing else is given; since some build between b3000 and
    # b4295 (#9056's time) it is empty then, so that such servers are started with an alias.
    card: Body = {
        "id": PATH,
        "object": "model",
        "created": 1700000000,
        "owned_by": "llamacpp",
    }
    if call.build >= 2100:  # b2378 has it, b1937 has not
        card["meta"] = {"vocab_type": 1, "n_vocab": 32000, "n_ctx_train": 4096, "n_embd": 4}
    call.json({"object": "list", "data": [card]})


def slots(call: Call) -> None:
    """`/slots`, which only answers since b3898 if it is asked for at the start."""
    if call.build >= 3898:
        raise Refused(501, "This server does not support slots endpoint. Start it with `--slots`")
    call.json(_slots(call))


def _slots(call: Call) -> list[Body]:
    shown = settings(call.build, defaults(call.build))
    busy = call.double.slots - _idle(call)
    return [
        shown | {"id": number, "state": int(number < busy)} for number in range(call.double.slots)
    ]


def metrics(call: Call) -> None:
    """`/metrics`, which needs `--metrics`."""
    hint = " Start it with `--metrics`" if call.build >= 3600 else ""
    what = f"This server does not support metrics endpoint.{hint}"
    if call.build < 2400:
        call.whole(501, what.encode(), "text/plain; charset=utf-8")
        return
    raise Refused(501, what)


def tokenize(call: Call) -> None:
    """`/tokenize`: no BOS unless `add_special` asks for it, since b2600."""
    body = call.body()
    content = body.get("content")
    if content is None:
        call.json({"tokens": []})
        return
    ids = tokens_of_prompt(content, call.double.says)
    special = body.get("add_special") is True and call.build >= 2600
    if isinstance(content, str) and not special:
        ids = ids[1:]
    if body.get("with_pieces") is True and call.build >= 3748:
        call.json({"tokens": [{"id": one, "piece": text_of([one])} for one in ids]})
        return
    call.json({"tokens": ids})


def detokenize(call: Call) -> None:
    """`/detokenize`."""
    call.json({"content": text_of(call.body().get("tokens") or [])})


def embedding(call: Call) -> None:
    """`/embedding`, and since b2004 (#5190) the others; one result has the shape of OpenAI's."""
    build, on = call.build, call.double.embeddings
    if 2100 <= build < 3500 and not on:  # b2378 to July 2024; b3648 makes them in any case
        what = b"This server does not support embeddings. Start it with `--embeddings`"
        call.whole(501, what, "text/plain; charset=utf-8")
        return
    body = call.body()
    if "input" not in body or build < 2004:
        if "content" not in body and build >= 2004:
            raise Refused(400, '"input" or "content" must be provided')
        vector = _vector(call, body.get("content") or "")
        if build < 2100 and not on:
            vector = [0.0] * _DIMENSIONS
        call.json({"embedding": vector} if build < 4275 else {"index": 0, "embedding": vector})
        return
    prompts = body["input"]
    if not isinstance(prompts, list) or any(type(one) is int for one in prompts):
        prompts = [prompts]
    data = [
        {"embedding": _vector(call, prompt), "index": index, "object": "embedding"}
        for index, prompt in enumerate(prompts)
    ]
    call.json(_open(body) | {"data": data})


def _open(body: Body) -> Body:
    return {
        "model": body.get("model") or "gpt-3.5-turbo-0613",
        "object": "list",
        "usage": {"prompt_tokens": 0, "total_tokens": 0},  # never filled in these builds
    }


def _vector(call: Call, prompt: Any) -> list[float]:
    """A vector of length one that depends on the tokens; `encoding_format` is not known yet."""
    vector = [0.0] * _DIMENSIONS
    vector[sum(tokens_of_prompt(prompt, call.double.says)) % _DIMENSIONS] = 1.0
    return vector


def rerank(call: Call) -> None:
    """`/rerank` and its other names, since b3838: in the order of the documents, all of them."""
    if not call.double.reranks:
        what = (
            "This server does not support reranking. "
            "Start it with `--reranking` and without `--embedding`"
        )
        raise Refused(501, what)
    body = call.body()
    query, documents = body.get("query"), body.get("documents")
    if not isinstance(query, str):
        what = "must be a string" if "query" in body else "must be provided"
        raise Refused(400, f'"query" {what}')
    if not isinstance(documents, list) or not documents:
        raise Refused(400, '"documents" must be a non-empty string array')
    wanted = set(tokens_of(query))
    results = [
        {"index": index, "relevance_score": float(len(wanted & set(tokens_of(document))))}
        for index, document in enumerate(documents)
    ]
    call.json(_open(body) | {"results": results})
