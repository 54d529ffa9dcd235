"""An answer held to what was asked of its tool calls.

Servers are asked in the way in which they say that they can do it, and many do not: llama.cpp's
`parallel_tool_calls: false` does not forbid a second call with every template, and much that
speaks OpenAI's API reads no `tool_choice`. An answer that is not what was required fails, and is
never told as if it were one. Text that came before stands: it may have reached the client.
"""

from __future__ import annotations

import msgspec

from tropilla.calls import customs
from tropilla.calls.customs import Unwrapped
from tropilla.ir import (
    Chat,
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Problem,
    Progress,
    Request,
    ToolChoice,
)

_ANY = ToolChoice(mode="auto")


def held(request: Request) -> Held | None:
    """Who holds the answer, where there is something to hold it to."""
    chat = request.input
    if not isinstance(chat, Chat) or not chat.tools:
        return None
    free = (chat.tool_choice or _ANY) == _ANY and chat.parallel_tool_calls is not False
    return None if free and not customs.names(request) else Held(request, chat)


class _Choice:
    __slots__ = ("calls", "custom", "ended", "kind")

    def __init__(self) -> None:
        self.kind: PartKind | None = None
        self.calls = 0
        self.custom: Unwrapped | None = None
        self.ended = False


class Held:
    """Events of an answer, up to where it breaks its promise."""

    def __init__(self, request: Request, chat: Chat) -> None:
        self._wanted = request.choices
        self._choice = chat.tool_choice or _ANY
        self._one = chat.parallel_tool_calls is False
        self._customs = customs.names(request)
        self._choices: dict[int, _Choice] = {}
        self.hit = False
        """Whether what was returned last is the end of the answer, though the upstream goes on."""

    def feed(self, events: list[Event]) -> list[Event]:
        """The events that keep the promise."""
        told: list[Event] = []
        for event in events:
            if self.hit:
                break
            match event:
                case PartStarted() | PartDelta() | PartEnded() | ChoiceEnded() | Progress():
                    choice = self._choices.setdefault(event.choice, _Choice())
                    if not choice.ended:
                        self._tell(choice, event, told)
                case _:
                    told.append(event)
        return told

    def _tell(
        self,
        choice: _Choice,
        event: PartStarted | PartDelta | PartEnded | ChoiceEnded | Progress,
        told: list[Event],
    ) -> None:
        match event:
            case PartStarted(kind="tool_call"):
                self._call(choice, event, told)
                return
            case PartStarted():
                choice.kind = event.kind
            case PartDelta() if choice.custom is not None:
                event = msgspec.structs.replace(event, text=choice.custom.feed(event.text))
                if event == PartDelta(choice=event.choice, text=""):
                    return
            case PartEnded():
                if choice.custom is not None and (rest := choice.custom.end()):
                    told.append(PartDelta(choice=event.choice, text=rest))
                choice.kind = choice.custom = None
            case ChoiceEnded():
                # One that was cut short may have been on its way to a call.
                done = event.reason in {"stop", "tool_calls", "function_call"}
                if self._choice.mode == "required" and not choice.calls and done:
                    self._fail("had to call a tool, and answered without a call", told)
                    return
                choice.ended = True
        told.append(event)

    def _call(self, choice: _Choice, event: PartStarted, told: list[Event]) -> None:
        if self._choice.mode == "none":
            self._fail("was not to call a tool, and did", told)
            return
        if self._choice.only and event.name not in self._choice.only:
            self._fail(f"called '{event.name}', which 'tool_choice' does not allow", told)
            return
        if self._one and choice.calls:
            choice.ended = True
            told.append(ChoiceEnded(choice=event.choice, reason="tool_calls"))
            if sum(one.ended for one in self._choices.values()) == self._wanted:
                self.hit = True
                told.append(Finished())
            return
        choice.calls += 1
        choice.kind = event.kind
        if event.name in self._customs and not event.custom:
            choice.custom = Unwrapped()
            event = msgspec.structs.replace(event, custom=True)
        told.append(event)

    def _fail(self, why: str, told: list[Event]) -> None:
        told += (
            PartEnded(choice=index) for index, one in self._choices.items() if one.kind is not None
        )
        problem = Problem(kind="upstream_failed", message=f"The model {why}.")
        told.append(Failed(problem=problem))
        self.hit = True
