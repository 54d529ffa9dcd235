"""The accounts: who may ask and how much, what was taken, and where that is kept.

Nothing here knows a dialect, an upstream or a socket of a client; a request is told of by its
`record`, and passes `admission` once before it is served.
"""
