"""What is read off a SMILES string before any parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chem.strings import Limits, Unfit, check_string, looks_like_smiles, sketch

PHENYLENES = "c1cc2ccc1" + "-c1ccc(cc1)" * 16 + "-c1ccc2cc1"


@pytest.mark.parametrize(("smiles", "atoms", "dummies", "fragments", "rings"), [
    ("CCO", 3, 0, 1, 0),
    ("[Na+].[Cl-]", 2, 0, 2, 0),
    ("c1ccccc1Br", 7, 0, 1, 1),
    ("[2H]C([2H])Cl", 2, 0, 1, 0),
    ("*c1ccccc1[1*]", 6, 2, 1, 1),
    ("C%12CCCCC%12", 6, 0, 1, 1),
    ("[13CH3:1]/C=C/[nH]", 4, 0, 1, 0),
])
def test_sketch(smiles: str, atoms: int, dummies: int, fragments: int, rings: int) -> None:
    seen = sketch(smiles)
    assert (seen.atoms, seen.dummies, seen.fragments, seen.rings) == (atoms, dummies, fragments, rings)


@pytest.mark.parametrize(("smiles", "reason"), [
    ("", "empty"), ("C" * 401, "too-long"), ("C" * 90, "too-many-atoms"), ("*", "too-few-atoms"), ("[H][H]", "too-few-atoms"),
    ("C.C.C.C.C", "too-many-fragments"), ("C1CC", "syntax"), ("C(C", "syntax"), ("CC)", "syntax"), ("hello", "syntax"),
    ("CCÖ", "syntax"), ("\x00\x01", "syntax"), ("C C", "syntax"), (PHENYLENES, "too-many-atoms"),
    ("C$C", "undrawable-bond"), ("[*+]CC", "undrawable-dummy"), ("[*H]CC", "undrawable-dummy"), ("C[1*-]", "undrawable-dummy"),
    ("[1*:2]C", "undrawable-dummy"), ("F[Pt@SP1](Cl)(Br)I", "undrawable-stereo"), ("C12C3C4C1C5C2C3C45" * 4, "too-many-rings"),
])
def test_limits_name_their_reason(smiles: str, reason: str) -> None:
    with pytest.raises(Unfit) as unfit:
        check_string(smiles, Limits())
    assert unfit.value.reason == reason
    assert unfit.value.detail


@pytest.mark.parametrize("smiles", ["*C[NH3+]", "[1*]C[O-]", "[*:1]C[C@H](C)[2*]", "[*]-C"])
def test_dummies_of_one_number_or_none_may_be_drawn(smiles: str) -> None:
    assert check_string(smiles, Limits()).dummies


@pytest.mark.parametrize("name", ["aspirin", "CHEMBL25", "ZINC000001", "2244", "InChI=1S/CH4/h1H4", "benzene", "", "C1", "-"])
def test_names_are_no_smiles(name: str) -> None:
    assert not looks_like_smiles(name)


@given(st.text(max_size=60))
def test_any_text_is_judged(text: str) -> None:
    try:
        check_string(text, Limits())
    except Unfit as unfit:
        assert unfit.reason  # noqa: PT017


@given(st.text(alphabet="CNOc1()=[]%+-@.", max_size=40))
def test_near_smiles_are_judged(text: str) -> None:
    try:
        seen = check_string(text, Limits())
    except Unfit:
        return
    assert seen.atoms >= 1
