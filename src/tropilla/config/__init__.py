"""What the gateway is told: one typed tree, whatever it was filled from.

`tree` is the tree; `texts` reads single values as people write them. `load` fills the tree from a
file (`source` makes `nodes` of its YAML, `read` makes settings of these, `check` looks at them
together) and from the environment; `show` and `schema` tell it to people and to editors. Both, and
`read`, know the settings only from the types of the tree (`kinds`), so that they cannot differ.

Only `source` and `show` need YAML: a gateway that is told everything by flags does not load it.
"""

from tropilla.config.texts import read_keys, read_listen, read_moment, read_url, shown_url
from tropilla.config.tree import (
    TINY_MODEL,
    TINY_NAME,
    AccountsConfig,
    BudgetConfig,
    CaptureConfig,
    Config,
    ConfigError,
    EngineConfig,
    FailuresConfig,
    KeyConfig,
    LimitsConfig,
    ModelConfig,
    PriceConfig,
    QueueConfig,
    RepeatsConfig,
    ResponsesConfig,
    TeamConfig,
    TermsConfig,
    TimeoutsConfig,
    TracesConfig,
    UpstreamConfig,
)

__all__ = [
    "TINY_MODEL",
    "TINY_NAME",
    "AccountsConfig",
    "BudgetConfig",
    "CaptureConfig",
    "Config",
    "ConfigError",
    "EngineConfig",
    "FailuresConfig",
    "KeyConfig",
    "LimitsConfig",
    "ModelConfig",
    "PriceConfig",
    "QueueConfig",
    "RepeatsConfig",
    "ResponsesConfig",
    "TeamConfig",
    "TermsConfig",
    "TimeoutsConfig",
    "TracesConfig",
    "UpstreamConfig",
    "read_keys",
    "read_listen",
    "read_moment",
    "read_url",
    "shown_url",
]
