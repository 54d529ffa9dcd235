"""Every client dialect over every generation and kind of server: the table of docs/matrix.md."""
