"""What is seen of a gateway: counts, lines, spans, what goes on now. No token passes here."""
