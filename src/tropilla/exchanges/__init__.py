"""One request put to one upstream, and its answer as events: plainly, and with what upstreams lack.

`exchange` asks; the others are exchanges around it, so that a streamed and an unstreamed answer
stay the same.
"""
