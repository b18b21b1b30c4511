"""The name of a submission."""

from audiotok.launchers.slurm.submission import make_token


def test_tokens_are_fit_for_slurm_and_never_the_same() -> None:
    tokens = {make_token("my package/é", ["b", "a"]) for _ in range(50)}
    assert len(tokens) == 50
    assert all(token.isascii() and not set(token) & set(" /|,[]%") for token in tokens)
    assert len({token.rsplit("_", 1)[0] for token in tokens}) == 1  # same experiments, in any order
    assert make_token("p", ["a", "b"]).rsplit("_", 1)[0] == make_token("p", ["b", "a"]).rsplit("_", 1)[0]
