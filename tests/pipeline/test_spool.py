"""The spool gives back what it was given, whether a sample waited in memory or in the file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.build.spool import SampleInfo, Spool, open_spool
from shards.sample import encoded_size

FIELDS = st.lists(st.tuples(st.sampled_from(["json", "ids.npy", "0.jpg", "0.tiles.png"]), st.binary(max_size=1500)), min_size=1,
                  max_size=4)


def info_of(fields: list[tuple[str, bytes]], number: int) -> SampleInfo:
    """The numbers of a sample; only some of them matter here."""
    return SampleInfo(source="s", row=f"r#{number}", tokens=number + 1, targets=1, answer_tokens=1, images=number % 3,
                      patches=number, turns=1, modes=("tiny",), sizes=("1x1",), kept_images=0, dropped_turns=0, cut="",
                      bytes=encoded_size(fields))


@given(st.lists(FIELDS, min_size=1, max_size=8), st.sampled_from([0, 3000, 1 << 20]), st.randoms(use_true_random=False))
def test_every_sample_comes_back_in_any_order(tmp_path_factory: pytest.TempPathFactory, samples: list[list[tuple[str, bytes]]],
                                              held: int, order: object) -> None:
    path = tmp_path_factory.mktemp("spool") / "train.bin"
    with Spool(path, held=held) as spool:
        for number, fields in enumerate(samples):
            spool.add(fields, info_of(fields, number))
        for number in sorted(range(len(samples)), key=lambda _: order.random()):  # type: ignore[attr-defined]
            packed = spool.read(number)
            assert [(suffix, bytes(data)) for suffix, data in packed.fields] == samples[number]
            assert (packed.tokens, packed.images, packed.patches) == (number + 1, number % 3, number)
    assert path.stat().st_size <= sum(len(data) for fields in samples for _, data in fields)
    assert held < 1 << 20 or path.stat().st_size == 0


@given(st.lists(FIELDS, max_size=5))
def test_another_process_reads_it(tmp_path_factory: pytest.TempPathFactory, samples: list[list[tuple[str, bytes]]]) -> None:
    folder = tmp_path_factory.mktemp("spool")
    with Spool(folder / "val.bin") as spool:
        for number, fields in enumerate(samples):
            spool.add(fields, info_of(fields, number))
        spool.save_index(folder / "val.json")
    with open_spool(folder / "val.bin", folder / "val.json") as again:
        assert again.infos == spool.infos
        assert [[(suffix, bytes(data)) for suffix, data in again.read(number).fields] for number in range(len(again))] == samples


def test_what_is_in_memory_is_not_left_for_another_process(tmp_path: Path) -> None:
    fields = [("json", b"{}")]
    with Spool(tmp_path / "val.bin", held=1 << 20) as spool:
        spool.add(fields, info_of(fields, 0))
        with pytest.raises(AssertionError):
            spool.save_index(tmp_path / "val.json")
