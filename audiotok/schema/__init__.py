"""The schema of the configuration: what every key may hold, checked before anything is built.

Without torch: `audiotok plan` and `dora grid` check each experiment. Of a kind of solver that is not listed the keys
that every solver has are checked, and it may have others.
"""

from audiotok.experiments.schema import Schema
from audiotok.schema.codec import Compression
from audiotok.schema.common import Common
from audiotok.schema.lm import LanguageModel
from audiotok.schema.rules import COMMON_IDLE, COMMON_RULES, COMPRESSION_IDLE, COMPRESSION_RULES, LM_IDLE, LM_RULES

SCHEMA = Schema(
    kinds={"compression": Compression, "lm": LanguageModel},
    common=Common,
    rules={"": COMMON_RULES, "compression": COMPRESSION_RULES, "lm": LM_RULES},
    idle={"": COMMON_IDLE, "compression": COMPRESSION_IDLE, "lm": LM_IDLE},
)
