"""`benchmarks/studies/pooling.py`: the heads it compares, and its table."""

import pytest
import torch

from benchmarks.studies import pooling


@pytest.mark.parametrize("name", pooling.HEADS)
def test_a_head_reads_a_map(name: str) -> None:
    head = pooling.HEADS[name](256, (4, 5))
    assert head(torch.randn(3, 256, 4, 5)).shape == (3, head.out_features)


def test_widened_and_doubled_heads_have_as_many_features_as_arm() -> None:
    names = ("average, widened", "depthwise, two", "ARM, 2")
    assert {pooling.HEADS[name](8, (3, 3)).out_features for name in names} == {16}


def test_the_table_pairs_seeds_of_one_network_and_noise() -> None:
    def row(head: str, noise: float, seed: int, right: str) -> dict:
        cell = pooling.Cell("small", head, noise, seed)._asdict()
        return cell | {"val": 0.5, "test": right.count("1") / 4, "features": 3, "right": right}

    rows = [row("average", 0.0, 1, "1000"), row("ARM, 2", 0.0, 1, "1110")]
    rows += [row("average", 0.2, 2, "1111"), row("ARM, 2", 0.2, 2, "0111")]
    lines = [
        [cell.strip() for cell in line.split("|")] for line in pooling.table(rows).splitlines()
    ]
    gains = {(line[2], line[3]): line[8].split()[0] for line in lines[2:]}
    assert gains == {
        ("0%", "average"): "-", ("0%", "ARM, 2"): "+50.0",
        ("20%", "average"): "-", ("20%", "ARM, 2"): "-25.0",
    }  # fmt: skip
