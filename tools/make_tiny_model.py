"""Make tiny.gguf, the language model that ships with Tropilla.

It is a real llama-architecture model for the real engine, yet no model was trained for it: every
weight follows from counts of word sequences in tiny_corpus.txt, so anyone can rebuild the file to
the last bit. It exists to try a gateway with no download and no GPU: it writes simple English
about a herd of llamas, ends its answers, calls tools and fills JSON.

How it works. The model is an n-gram table written down as one transformer layer:

* Every token has a code of 16 signs, a word of the extended Hamming code: two tokens differ in at
  least 4 of them. There are 2048 such words, which bounds the vocabulary.
* Head 0 looks exactly one token back and head 1 two tokens back. Their query and key do not depend
  on the token; RoPE alone makes the score a peak at the wanted distance. Each copies the code it
  finds into its own place in the residual stream.
* Head 2 looks for the latest topic word ("weather", "wool"...) and copies the code of its topic.
  That is why an answer has to do with the question, and a story with itself.
* Each hidden unit of the feed-forward layer recognises one context, for example "... the old llama"
  or "a sentence ended and the talk is of wool", and adds its vector to the stream. The vector is
  the context's own answer minus the answer of the next shorter context. All contexts which match
  form a chain, so their sum is exactly the answer of the longest one: back-off, by telescoping.
* The output matrix gives every token a vector too. The products of an answer with those come close
  to the log-probabilities that the corpus shows after the context.

Why it is the same everywhere. The vectors are found by iteration, but on whole numbers held in
floats, below 2**53, so that no order of summation can change a bit. All else is elementwise.

The stream of a token: [this | one back | two back | topic found | own topic | 1 | flag | answer]
All but the answer are signs and two constants, so their length is known beforehand and the weights
of RMSNorm can undo it. The answer is kept small and hardly counts.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "tiny_corpus.txt"
MODEL = HERE.parent / "src" / "tropilla" / "models" / "tiny.gguf"

CONTEXT_LENGTH = 8192
ROPE_BASE = 10000.0
NORM_EPSILON = 1e-5

# ------------------------------------------------------------------------------ the corpus


@dataclass(frozen=True)
class Passage:
    """A few sentences that belong together, and their topic (0: none)."""

    text: str
    topic: int


@dataclass(frozen=True)
class Corpus:
    """What the model reads: passages, and the words which raise each topic."""

    passages: list[Passage]
    topic_words: dict[str, int]


def read_corpus(path: Path) -> Corpus:
    """Read the corpus; its first lines describe the format."""
    passages: list[Passage] = []
    topic_words: dict[str, int] = {}
    topic = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("="):
            words = line.partition(":")[2].split()
            topic = max(topic_words.values(), default=0) + 1 if words else 0
            topic_words |= dict.fromkeys(words, topic)
        elif line and not line.startswith("#"):
            passages.append(Passage(line.replace("|", "\n"), topic))
    return Corpus(passages, topic_words)


# -------------------------------------------------------------------------- the vocabulary
#
# llama.cpp's SPM tokenizer joins, again and again, the two neighbours whose union has the best
# score in the vocabulary. Byte-pair encoding does the same if the score of a piece is minus the
# number of the merge that made it. No piece crosses the border of a chunk, so merging each chunk
# alone is merging the whole text.

SPACE = "\u2581"  # what SPM writes for a blank
CHUNK = re.compile(f"{SPACE}?[A-Za-z]+|{SPACE}?[^A-Za-z{SPACE}]|{SPACE}")
ROLES = ["system", "user", "assistant", "tool"]
LETTERS = [SPACE, *map(chr, range(33, 127))]

CONTROL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MARKS = ["<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
USER_DEFINED = ["<tool_call>", "</tool_call>"]
SPECIAL = re.compile("(" + "|".join(map(re.escape, CONTROL + MARKS + USER_DEFINED)) + ")")


def chunks(text: str) -> list[str]:
    """Split text where no piece may cross."""
    return CHUNK.findall(text.replace(" ", SPACE))


def learn_merges(corpus: Corpus) -> list[str]:
    """Return the pieces longer than one letter, best first."""
    counts: Counter[str] = Counter()
    for passage in corpus.passages:
        counts.update(chunks(SPECIAL.sub("", passage.text).replace("\n", "")))
    for word in [*corpus.topic_words, *ROLES]:  # these must become single pieces
        counts.update({word: 3, SPACE + word: 3})
    split = {chunk: list(chunk) for chunk in counts}
    pieces: list[str] = []
    while True:
        pairs: Counter[str] = Counter()
        for chunk, parts in split.items():
            for left, right in pairwise(parts):
                pairs[left + right] += counts[chunk]
        piece, count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < 2:
            return pieces
        pieces.append(piece)
        split = {chunk: join(parts, piece) for chunk, parts in split.items()}


def join(parts: list[str], piece: str) -> list[str]:
    """Join the neighbours, from the left, which together are `piece`."""
    joined: list[str] = []
    for part in parts:
        if joined and joined[-1] + part == piece and len(joined[-1]) < len(piece):
            joined[-1] = piece
        else:
            joined.append(part)
    return joined


class Vocabulary:
    """The tokens, by id and by text."""

    def __init__(self, merged: list[str]) -> None:
        self.merged = merged
        self.tokens = CONTROL + BYTES + MARKS + USER_DEFINED + LETTERS + merged
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        self._rank = {piece: rank for rank, piece in enumerate(merged)}

    def encode(self, text: str) -> list[int]:
        """Tokenize as llama.cpp does, special tokens included."""
        ids: list[int] = []
        for part in SPECIAL.split(text):
            if part in self.ids and SPECIAL.fullmatch(part):
                ids.append(self.ids[part])
                continue
            for chunk in chunks(part):
                ids.extend(self._encode_chunk(chunk))
        return ids

    def _encode_chunk(self, chunk: str) -> Iterator[int]:
        parts = list(chunk)
        while found := [a + b for a, b in pairwise(parts) if a + b in self._rank]:
            parts = join(parts, min(found, key=self._rank.__getitem__))
        for part in parts:
            if part in self.ids:
                yield self.ids[part]
            else:
                yield from (self.ids[BYTES[byte]] for byte in part.encode())

    def scores(self) -> list[float]:
        """Minus the rank for merged pieces; the others are never the result of a merge."""
        plain = len(self.tokens) - len(self.merged)
        return [0.0] * plain + [-float(rank) for rank in range(len(self.merged))]

    def types(self) -> list[int]:
        """Tell llama.cpp what each token is."""
        kinds = gguf.TokenType
        special = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
        special += [kinds.BYTE] * 256 + [kinds.CONTROL] * len(MARKS)
        special += [kinds.USER_DEFINED] * len(USER_DEFINED)
        return [int(k) for k in special + [kinds.NORMAL] * (len(self.tokens) - len(special))]


# ---------------------------------------------------------------------------- the contexts
#
# A context is what the model can see: this token, up to two before it, and perhaps the topic. At
# the end of a sentence the words before are forgotten, and near an opening the topic counts, so
# that sentences about the same thing follow each other freely.

END_OF_SENTENCE = ".?!"
OPENINGS = [*END_OF_SENTENCE, BYTES[10], "<s>", "<|fim_middle|>"]
CLOSERS = ["}", "<|im_end|>"]  # the likeliest choice where possible, so that greedy answers end
WORDS_SEEN = 3
PASSAGES = 2  # an answer is so many passages in a row
RAREST = 0.01  # continuations rarer than this are left out


@dataclass(frozen=True)
class Context:
    """Tokens from the present backwards, and a topic if that matters."""

    tokens: tuple[int, ...] = ()
    topic: int | None = None


NOWHERE = Context()  # matches always: what to do after a token that the corpus does not know
Answer = tuple[tuple[int, float], ...]  # pairs of a token and its probability


class Table:
    """How often each token followed each context."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary) -> None:
        self.topics = {
            vocabulary.ids[form]: topic
            for word, topic in corpus.topic_words.items()
            for form in (word, word.capitalize(), SPACE + word, SPACE + word.capitalize())
            if form in vocabulary.ids
        }
        self._stops = {vocabulary.ids[text] for text in END_OF_SENTENCE}
        self._closers = [vocabulary.ids[text] for text in CLOSERS]
        self._openings = {vocabulary.ids[text] for text in OPENINGS}
        self.counts: defaultdict[Context, Counter[int]] = defaultdict(Counter)
        self._read(corpus, vocabulary)

    def _read(self, corpus: Corpus, vocabulary: Vocabulary) -> None:
        turn = vocabulary.encode("<|im_start|>assistant\n")
        end = vocabulary.ids["<|im_end|>"]
        self.counts[NOWHERE][vocabulary.ids["."]] += 1
        for index, passage in enumerate(corpus.passages):
            ids = vocabulary.encode(passage.text)
            if passage.text.startswith("{"):  # a grammar opens it, not the model
                self._observe([*ids, end], 0)
            elif passage.text.startswith("<"):
                self._observe([*turn, *ids, end], passage.topic)
            else:
                for following in corpus.passages[index + 1 : index + PASSAGES]:
                    if following.topic == passage.topic:
                        ids += vocabulary.encode(" " + following.text)
                self._observe([*turn, *ids, end], passage.topic)
                for opening in ("<s>", "<|fim_middle|>"):
                    self._observe([vocabulary.ids[opening], ids[0]], 0)

    def _observe(self, ids: list[int], topic: int) -> None:
        for place, (token, follower) in enumerate(pairwise(ids)):
            topic = self.topics.get(token, topic)
            for context in self.chain(ids[: place + 1], topic):
                self.counts[context][follower] += 1

    def chain(self, past: list[int], topic: int) -> Iterator[Context]:
        """Yield the contexts which match, from the shortest to the longest."""
        seen: tuple[int, ...] = ()
        for token in past[: -WORDS_SEEN - 1 : -1]:
            seen += (token,)
            yield Context(seen)
            if token in self._stops:
                break
        if topic and not self._openings.isdisjoint(seen):
            yield Context(seen, topic)

    def answer(self, context: Context) -> Answer:
        """Return what may follow a context, and how probably."""
        counts = self.counts[context].copy()
        for closer in filter(counts.__contains__, self._closers):
            counts[closer] = 5 * max(counts.values()) // 4 + 1
        least = RAREST * counts.total()
        kept = sorted((token, count) for token, count in counts.items() if count >= least)
        total = sum(count for _, count in kept)
        return tuple((token, count / total) for token, count in kept)

    def answers(self) -> dict[Context, tuple[Answer, Answer]]:
        """Return each context that changes the answer, with the answer it changes and its own."""
        found: dict[Context, tuple[Answer, Answer]] = {NOWHERE: ((), self.answer(NOWHERE))}
        for context in sorted(self.counts, key=lambda c: (len(c.tokens), c.topic or 0, c.tokens)):
            if context != NOWHERE:
                before, after = found[self._parent(context, found)][1], self.answer(context)
                if before != after:
                    found[context] = before, after
        return found

    @staticmethod
    def _parent(context: Context, found: Container[Context]) -> Context:
        tokens = context.tokens
        if context.topic is None:
            tokens = tokens[:-1]
        while Context(tokens) not in found:
            tokens = tokens[:-1]
        return Context(tokens)


# ----------------------------------------------------------------------- codes and answers

WIDTH = 104
CODE = 16
TOPIC_CODE = 8
THIS, ONE_BACK, TWO_BACK = 0, CODE, 2 * CODE
TOPIC_FOUND = 3 * CODE
OWN_TOPIC = TOPIC_FOUND + TOPIC_CODE
ONE = OWN_TOPIC + TOPIC_CODE  # a constant
FLAG = ONE + 1  # its sign tells topic words from others
ANSWER = FLAG + 1
ANSWER_WIDTH = WIDTH - ANSWER
CONSTANT = 8.0

UNIT = 2.0**16  # vectors and codes are whole multiples of 1/UNIT
NAT = 2.0**12  # and logits of 1/NAT
LIKELY, UNLIKELY = 20 * NAT, 5 * NAT  # logits: a sure token, and the most for a wrong one
STEPS = 350
STEP = 2.0**-12
CARE = 8.0  # how much more the right tokens matter than the wrong ones


def signs(word: int, length: int) -> Floats:
    """Turn the low bits of a word into +1 and -1."""
    return np.array([1.0 - 2.0 * (word >> bit & 1) for bit in range(length)])


def hamming(index: int) -> int:
    """Return a word of the extended Hamming code [16, 11, 4]."""
    word = 0
    for bit in range(11):
        if index >> bit & 1:
            word ^= 0b10011 << bit
    return word | (word.bit_count() & 1) << 15


def reed_muller(index: int) -> int:
    """Return a word of the Reed-Muller code [8, 4, 4]."""
    return sum(((index & (place | 8)).bit_count() & 1) << place for place in range(8))


def random_bits(count: int) -> Iterator[int]:
    """Yield 64 random bits at a time (splitmix64)."""
    mask = 2**64 - 1
    for step in range(1, count + 1):
        bits = step * 0x9E3779B97F4A7C15 & mask
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
        yield bits ^ bits >> 31


def solve(answers: list[Answer], known: list[int]) -> tuple[dict[Answer, Floats], Floats]:
    """Find a vector for each answer and a code for each token, whose products are the logits.

    Tokens of the answer shall come to LIKELY plus their log-probability, all others to UNLIKELY or
    less. Codes begin as random signs; plain descent does the rest. Every number in a product of
    matrices is a whole one, so the products are exact and the result is the same everywhere.
    """
    row_of = {token: row for row, token in enumerate(known)}
    goal = np.full((len(known), len(answers)), UNLIKELY)
    most, care = np.zeros(goal.shape), np.ones(goal.shape)
    for column, answer in enumerate(answers):
        for token, probability in answer:
            at = row_of[token], column
            goal[at] = LIKELY + round(NAT * math.log(probability))
            most[at], care[at] = math.inf, CARE
    codes = UNIT * np.array([signs(bits, ANSWER_WIDTH) for bits in random_bits(len(known))])
    vectors = np.zeros((ANSWER_WIDTH, len(answers)))
    error = np.empty(goal.shape)  # one for all steps: to make them anew took most of the time
    for _ in range(STEPS):
        np.matmul(codes, vectors, out=error)
        error *= NAT / UNIT**2
        np.rint(error, out=error)
        np.subtract(goal, error, out=error)
        np.minimum(error, most, out=error)
        error *= care
        better = np.rint(codes.T @ error * (STEP / NAT))
        codes += np.rint(error @ vectors.T * (STEP / NAT))
        vectors += better
    found = {answer: vectors[:, column] / UNIT for column, answer in enumerate(answers)}
    return found, codes / UNIT


# ----------------------------------------------------------------------------- the weights

HEADS = 3
HEAD_WIDTH = 32
SHARPNESS = 200.0  # of the heads that look back a fixed distance
TOPIC_SHARPNESS = 100.0
# Head 2 uses two RoPE pairs. One turns by 1/100 per token, so that the latest word wins; the other,
# twice as strong, does not come round within the context, so that no much older word wins either.
TOPIC_PAIRS = {8: 1.0, 13: 2.0}
MARGIN = 4.0  # one mismatch between two codes costs twice this, or more
FIRE = 16.0  # a hidden unit that recognises its context; -FIRE or less if it does not
OUTPUT_SCALE = 32.0
NEVER = -20.0  # the logit of tokens that the corpus does not have


def embedding(size: int, topics: dict[int, int]) -> Floats:
    """Return the stream as it enters the layer: own code, own topic, constant and flag."""
    table = np.zeros((size, WIDTH))
    for token in range(size):
        topic = topics.get(token, 0)
        table[token, THIS : THIS + CODE] = signs(hamming(token), CODE)
        table[token, OWN_TOPIC : OWN_TOPIC + TOPIC_CODE] = signs(reed_muller(topic), TOPIC_CODE)
        table[token, ONE] = CONSTANT
        table[token, FLAG] = -CONSTANT if topic else CONSTANT
    return table


def undo_norm(count: int) -> Floats:
    """Return the weight which lets a stream of `count` signs and the constants pass RMSNorm."""
    return np.full(WIDTH, math.sqrt((count + 2 * CONSTANT**2) / WIDTH))


def attention() -> dict[str, Floats]:
    """Return the matrices of the three heads."""
    query, key, value = (np.zeros((HEADS * HEAD_WIDTH, WIDTH)) for _ in range(3))
    output = np.zeros((WIDTH, HEADS * HEAD_WIDTH))
    for head, (place, distance) in enumerate([(ONE_BACK, 1), (TWO_BACK, 2)]):
        first = head * HEAD_WIDTH
        for pair in range(HEAD_WIDTH // 2):
            # RoPE turns the key at distance d by -d * angle; turn the query back by the same.
            angle = distance * ROPE_BASE ** (-2 * pair / HEAD_WIDTH)
            query[first + 2 * pair, ONE] = SHARPNESS * math.cos(angle) / CONSTANT
            query[first + 2 * pair + 1, ONE] = -SHARPNESS * math.sin(angle) / CONSTANT
            key[first + 2 * pair, ONE] = 1 / CONSTANT
        for sign in range(CODE):
            value[first + sign, THIS + sign] = 1.0
            output[place + sign, first + sign] = 1.0
    first = 2 * HEAD_WIDTH
    for pair, strength in TOPIC_PAIRS.items():
        query[first + 2 * pair, ONE] = TOPIC_SHARPNESS * strength / CONSTANT
        key[first + 2 * pair, ONE] = TOPIC_SHARPNESS / CONSTANT / 2  # one minus flag: 0 or 2
        key[first + 2 * pair, FLAG] = -TOPIC_SHARPNESS / CONSTANT / 2
    for sign in range(TOPIC_CODE):
        value[first + sign, OWN_TOPIC + sign] = 1.0
        output[TOPIC_FOUND + sign, first + sign] = 1.0
    return {"attn_q": query, "attn_k": key, "attn_v": value, "attn_output": output}


def feed_forward(
    contexts: dict[Context, tuple[Answer, Answer]], vectors: dict[Answer, Floats]
) -> dict[str, Floats]:
    """Return the matrices with one hidden unit for each context."""
    gate, up = np.zeros((len(contexts), WIDTH)), np.zeros((len(contexts), WIDTH))
    down = np.zeros((WIDTH, len(contexts)))
    up[:, ONE] = 1 / CONSTANT
    scale = FIRE / MARGIN
    for unit, (context, (before, after)) in enumerate(contexts.items()):
        for distance, token in enumerate(context.tokens):
            place = THIS + distance * CODE
            gate[unit, place : place + CODE] = scale * signs(hamming(token), CODE)
        if context.topic is not None:
            place = TOPIC_FOUND
            code = signs(reed_muller(context.topic), TOPIC_CODE)
            gate[unit, place : place + TOPIC_CODE] = scale * code
        full = CODE * len(context.tokens) + TOPIC_CODE * (context.topic is not None)
        gate[unit, ONE] = scale * (MARGIN - full) / CONSTANT
        change = vectors[after] - (vectors[before] if before else 0.0)
        down[ANSWER:, unit] = change / (OUTPUT_SCALE * FIRE)
    return {"ffn_gate": gate, "ffn_up": up, "ffn_down": down}


def output_matrix(size: int, codes: Floats, known: list[int]) -> Floats:
    """Return the matrix that reads the answer."""
    matrix = np.zeros((size, WIDTH))
    matrix[:, ONE] = NEVER / CONSTANT
    matrix[known, ONE] = 0.0
    matrix[known, ANSWER:] = OUTPUT_SCALE * codes
    return matrix


def build(vocabulary: Vocabulary, table: Table, layers: int) -> dict[str, Floats]:
    """Return all tensors by their names in the file."""
    size = len(vocabulary.tokens)
    contexts = table.answers()
    answers = sorted({after for _, after in contexts.values()})
    known = sorted({token for answer in answers for token, _ in answer})
    vectors, codes = solve(answers, known)
    layer = {
        "attn_norm": undo_norm(CODE + TOPIC_CODE),
        **attention(),
        "ffn_norm": undo_norm(ANSWER - 2),
        **feed_forward(contexts, vectors),
    }
    tensors = {"token_embd": embedding(size, table.topics)}
    for index in range(layers):
        tensors |= {f"blk.{index}.{name}": values for name, values in layer.items()}
        # Layers after the first do the same work and throw the result away.
        layer |= {name: np.zeros_like(layer[name]) for name in ("attn_output", "ffn_down")}
    return {
        **tensors,
        "output_norm": undo_norm(ANSWER - 2),
        "output": output_matrix(size, codes, known),
    }


# -------------------------------------------------------------------------------- the file

# ChatML, with tools as Hermes and Qwen write them. Two things serve the model's short memory: with
# tools, the last message ends in words that raise the topic "tool", and a tool's result comes in a
# tag that raises the topic "result".

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n\\nYou may call one of these functions:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\n\\nTo call one, answer with its name and arguments as JSON:\\n' }}
    {{- '<tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}
                {%- set call = call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {%- if call.arguments is string %}
                {{- call.arguments }}
            {%- else %}
                {{- call.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- if tools and loop.last and message.role == 'user' %}
            {{- '\\n\\n(You may call a tool.)' }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def write(path: Path, vocabulary: Vocabulary, tensors: dict[str, Floats], layers: int) -> None:
    """Write the model file."""
    ids = vocabulary.ids
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("tropilla-tiny")
    writer.add_author("Tropilla")
    writer.add_organization("Tropilla")
    writer.add_description("A tiny model about a herd of llamas, computed from counts")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(len(tensors["blk.0.ffn_gate"]))
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD_WIDTH)
    writer.add_value_length(HEAD_WIDTH)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores())
    writer.add_token_types(vocabulary.types())
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_eot_token_id(ids["<|im_end|>"])
    writer.add_uint32("tokenizer.ggml.fim_pre_token_id", ids["<|fim_prefix|>"])
    writer.add_uint32("tokenizer.ggml.fim_suf_token_id", ids["<|fim_suffix|>"])
    writer.add_uint32("tokenizer.ggml.fim_mid_token_id", ids["<|fim_middle|>"])
    writer.add_add_bos_token(value=True)
    writer.add_add_eos_token(value=False)
    writer.add_add_space_prefix(value=False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, values in tensors.items():
        kind = np.float32 if values.ndim == 1 else np.float16
        writer.add_tensor(f"{name}.weight", values.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(path: Path, layers: int = 1) -> str:
    """Make the model, write it and return the SHA-256 of the file."""
    corpus = read_corpus(CORPUS)
    vocabulary = Vocabulary(learn_merges(corpus))
    tensors = build(vocabulary, Table(corpus, vocabulary), layers)
    write(path, vocabulary, tensors, layers)
    return digest(path)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Make the model, or check that the committed one is what this script makes."""
    parser = argparse.ArgumentParser(description="Make the tiny model that ships with Tropilla.")
    parser.add_argument("--out", type=Path, default=MODEL, help="the file to write")
    parser.add_argument("--layers", type=int, default=1, help="more than 1 only costs time")
    parser.add_argument("--check", action="store_true", help="compare with the file, do not write")
    options = parser.parse_args()
    if not options.check:
        print(make(options.out, options.layers), options.out)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder) / "tiny.gguf", options.layers)
    same = made == digest(options.out)
    print(made, "is" if same else "is NOT", options.out)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
