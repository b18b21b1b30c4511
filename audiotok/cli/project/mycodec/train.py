"""Entry point of mycodec: audiotok's training, configured by `config/` here and, for what that lacks, audiotok's."""

from typing import Any

from audiotok import training
from audiotok.experiments import experiment_main
from audiotok.launchers.dora_patches import install, report_mistakes_in_one_line
from audiotok.schema import SCHEMA

report_mistakes_in_one_line()


@experiment_main(
    config_path="config",
    config_name="config",
    version_base="1.3",
    base="audiotok",
    additions=training.ADDITIONS,
    schema=SCHEMA,
)
def main(cfg: Any) -> None:
    """Train one experiment."""
    training.run(cfg)


install(main)

if __name__ == "__main__":
    main()
