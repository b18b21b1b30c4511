"""The schema of the configuration: what every key may hold, checked before anything is built.

Without torch: `audiotok plan` and `dora grid` check each experiment. Of a kind of solver that is not listed the keys
that every solver has are checked, and it may have others.
"""

from audiotok.experiments.schema import Schema
from audiotok.schema.rules import COMMON_IDLE, COMMON_RULES, COMPRESSION_IDLE, COMPRESSION_RULES
from audiotok.schema.sections import Common, Compression

SCHEMA = Schema(
    kinds={"compression": Compression},
    common=Common,
    rules={"": COMMON_RULES, "compression": COMPRESSION_RULES},
    idle={"": COMMON_IDLE, "compression": COMPRESSION_IDLE},
)
