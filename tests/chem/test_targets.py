"""Target formats, prompts and wrapping."""

import random

import pytest
from rdkit import Chem

from pipeline.chem.job import PROMPTS, TARGETS, Job
from pipeline.chem.strings import Unfit
from pipeline.chem.styles import load_style
from pipeline.chem.surface import open_pixel_source
from pipeline.chem.targets import write_prompt, write_target
from tests.chem.helpers import MOLECULES, depict


@pytest.mark.parametrize("target", TARGETS)
def test_targets_say_the_molecule(target: str) -> None:
    if target in ("selfies", "deepsmiles"):
        pytest.importorskip(target)
    for smiles in map(Chem.CanonSmiles, MOLECULES):
        text = write_target(target, smiles, random.Random(1))
        if target == "inchi":
            assert text == Chem.MolToInchi(Chem.MolFromSmiles(smiles))
            continue
        if target == "selfies":
            import selfies

            text = selfies.decoder(text)
        if target == "deepsmiles":
            import deepsmiles

            text = deepsmiles.Converter(rings=True, branches=True).decode(text)
        assert Chem.CanonSmiles(text) == smiles
        if target == "kekule":
            assert not any(letter in text for letter in "cn")


def test_random_smiles_differ_by_seed_and_not_otherwise() -> None:
    smiles = Chem.CanonSmiles("CC(C)Cc1ccc(cc1)C(C)C(=O)O")
    texts = {write_target("random", smiles, random.Random(seed)) for seed in range(20)}
    assert len(texts) > 5
    assert write_target("random", smiles, random.Random(3)) == write_target("random", smiles, random.Random(3))


def test_a_target_that_cannot_be_written_rejects_the_row() -> None:
    pytest.importorskip("selfies")
    with pytest.raises(Unfit) as unfit:
        write_target("selfies", "FS(F)(F)(F)(F)(F)(F)F", random.Random(0))
    assert unfit.value.reason == "target"
    with pytest.raises(Unfit, match="cannot be written"):
        write_target("selfies", Chem.CanonSmiles("C:[2H]C"), random.Random(0))
    with pytest.raises(Unfit, match="reads back as another molecule"):
        write_target("selfies", "[CH3:1][OH:2]", random.Random(0))
    for target in ("selfies", "inchi"):
        with pytest.raises(Unfit, match="cannot say an R group"):
            write_target(target, "[1*]c1ccccc1", random.Random(0))
    with pytest.raises(Unfit, match="only be kept in SMILES"):
        write_target("inchi", "*C |$OMe;$|", random.Random(0))


def test_prompts_name_the_target() -> None:
    for seed in range(30):
        text = write_prompt(PROMPTS["varied"], "inchi", random.Random(seed))
        assert "InChI" in text
        assert "{" not in text


def test_wrap_puts_tags_round_the_answer() -> None:
    job = Job(style=load_style("plain"), size=96, wrap="smiles", prompts=("Which?",))
    row = depict("CCO", 0, job, open_pixel_source())
    assert (row.prompt, row.answer) == ("Which?", "<smiles>CCO</smiles>")


def test_job_survives_its_way_to_the_worker() -> None:
    job = Job(style=load_style("patent"), size=640, seed=3, target="inchi", prompts=("a", "b"), wrap="x")
    assert Job.from_json(job.to_json()) == job
