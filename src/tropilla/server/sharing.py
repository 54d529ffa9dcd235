"""What this gateway shares with others, where the settings say so."""

from __future__ import annotations

from tropilla.accounts.limits import Meter, Spending
from tropilla.accounts.meters.memory import Memory
from tropilla.accounts.meters.valkey import Shared
from tropilla.accounts.valkey import Valkey, ValkeyError
from tropilla.config import Config, ConfigError
from tropilla.server.accounts import Accounts
from tropilla.upstream.others import Others

MEMORY = "memory"


class Sharing:
    """What is open of it."""

    def __init__(self, valkey: Valkey | None, accounts: Accounts | None) -> None:
        self.valkey = valkey
        self._accounts = accounts

    @classmethod
    async def open(cls, config: Config, accounts: Accounts | None) -> Sharing:
        """Open what the settings say.

        Raises:
            ConfigError: it cannot be.
        """
        if config.accounts.shared == MEMORY:
            return cls(None, accounts)
        spent = None if accounts is None else accounts.spending
        try:
            return cls(await Valkey.open(config.accounts.shared, spent), accounts)
        except ValkeyError as error:
            raise ConfigError(f"accounts.shared: {error}") from None

    def meter(self, part: tuple[int, int] = (0, 1)) -> Meter:
        """Where it is counted what is taken. `part` is which of how many processes this one is."""
        if self.valkey is not None:
            return Shared(self.valkey, self._spending)
        memory = Memory(part=part)
        if self._accounts is not None:
            memory.take(self._accounts.spent)
        return memory

    def others(self) -> Others | None:
        """The other gateways, as far as upstreams go."""
        return None if self.valkey is None else Others(self.valkey)

    async def _spending(self) -> Spending:
        return () if self._accounts is None else await self._accounts.spending()

    async def close(self) -> None:
        """Let go of it."""
        if self.valkey is not None:
            await self.valkey.close()
