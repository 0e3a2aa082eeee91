"""Every source has a licence line; the sets of the shipped recipes have their own."""

from pipeline.sources.licences import CHEMISTRY, OWN, REPOSITORIES, SUBSETS, licence_of


def test_by_repository_and_subset() -> None:
    assert licence_of("finevision", "HuggingFaceM4/FineVision", "SynthChartNet").name == "CDLA-Permissive-2.0"
    assert "clevr" in licence_of("finevision", "HuggingFaceM4/FineVision", "clevr").attribution
    assert licence_of("gsm8k", "openai/gsm8k").name == "MIT"
    assert licence_of("finevision", "rendered/chem") is CHEMISTRY
    assert licence_of("jsonl", "local/mine") is OWN
    assert licence_of("llava_cc3m", "local/LLaVA-CC3M") is REPOSITORIES["liuhaotian/LLaVA-CC3M-Pretrain-595K"]
    assert licence_of("finevision", "someone/else").name == "see the source"


def test_every_entry_says_whom_to_name() -> None:
    for licence in (*REPOSITORIES.values(), *SUBSETS.values()):
        assert licence.name
        assert len(licence.attribution) > 10
