"""Licence and attribution of each source, for the data card.

FineVision is a collection: each subset keeps its origin's licence. Listed are the sets that the shipped recipes use, as
their authors state them; whatever is not listed says where to look, and a user's own files say that they are the user's.
Nothing here is legal advice: terms on the images (web photographs, book covers, screenshots) may be narrower than those on
the annotations.
"""

from dataclasses import dataclass

FINEVISION = "HuggingFaceM4/FineVision"


@dataclass(frozen=True)
class Licence:
    """name: an SPDX identifier or plain words. attribution: whom to name, and what else to know."""

    name: str
    attribution: str


_COCO = "images: COCO / Flickr users under the Flickr terms of use"
_COSYN = Licence("ODC-By-1.0", "CoSyn-400K, Yang et al. 2025 (Allen Institute for AI); made with Claude and GPT-4o, whose "
                               "terms apply to the outputs")  # fmt: skip
_OLMOCR = Licence("ODC-By-1.0", "olmOCR-mix-0225, Poznanski et al. 2025 (Allen Institute for AI); pages from public PDFs and "
                                "the Internet Archive, text made with GPT-4o")  # fmt: skip
_DOCLING = Licence("CDLA-Permissive-2.0", "IBM Research, Docling team (SmolDocling, Nassar et al. 2025)")

REPOSITORIES: dict[str, Licence] = {
    "HuggingFaceTB/smol-smoltalk": Licence("Apache-2.0", "SmolTalk, Allal et al. 2025 (Hugging Face)"),
    "cais/mmlu": Licence("MIT", "Measuring Massive Multitask Language Understanding, Hendrycks et al. 2021"),
    "openai/gsm8k": Licence("MIT", "Training Verifiers to Solve Math Word Problems, Cobbe et al. 2021 (OpenAI)"),
    "liuhaotian/LLaVA-CC3M-Pretrain-595K": Licence(
        "CC-3M terms", "LLaVA, Liu et al. 2023; images and captions of Conceptual Captions (Google), BLIP captions; the images "
                       "are for reproducing the authors' work only"),
    "allenai/olmOCR-mix-1025": Licence("ODC-By-1.0", "olmOCR-mix-1025, Poznanski et al. 2025 (Allen Institute for AI)"),
}  # fmt: skip

SUBSETS: dict[str, Licence] = {
    "DoclingMatix": Licence("CDLA-Permissive-2.0", f"{_DOCLING.attribution}; built on Docmatix (Hugging Face, PDFA)"),
    "synthdog": Licence("MIT", "SynthDoG, Kim et al. 2022 (Donut, NAVER CLOVA); text from Wikipedia, CC BY-SA"),
    "olmOCR-mix-0225-documents": _OLMOCR,
    "olmOCR-mix-0225-books": _OLMOCR,
    "sroie": Licence("CC-BY-4.0", "ICDAR 2019 competition on scanned receipts, Huang et al. 2019"),
    "ocrvqa": Licence("not stated", "OCR-VQA, Mishra et al. 2019; book covers belong to their publishers"),
    "textvqa": Licence("CC-BY-4.0", "TextVQA, Singh et al. 2019 (Facebook AI Research); images of Open Images, CC BY 2.0"),
    "textcaps": Licence("CC-BY-4.0", "TextCaps, Sidorov et al. 2020 (Facebook AI Research); images of Open Images, CC BY 2.0"),
    "screenqa": Licence("CC-BY-4.0", "ScreenQA, Hsiao et al. 2022 (Google Research); screenshots of RICO"),
    "SynthChartNet": _DOCLING,
    "Unichart": Licence("GPL-3.0", "UniChart, Masry et al. 2023 (York University)"),
    "CoSyn_400k_chart": _COSYN,
    "CoSyn_400k_table": _COSYN,
    "CoSyn_400k_math": _COSYN,
    "CoSyn_400k_diagram": _COSYN,
    "CoSyn_400k_chemical": _COSYN,
    "plotqa": Licence("CC-BY-4.0", "PlotQA, Methani et al. 2020 (IIT Madras)"),
    "latexformulas": Licence("not stated", "LaTeX formulas rendered by OleehyO"),
    "hme100k": Licence("not stated", "HME100K, Yuan et al. 2022 (TAL Education); for research"),
    "geo170k(align)": Licence("not stated", "Geo170K, Gao et al. 2023 (G-LLaVA)"),
    "geo170k(qa)": Licence("not stated", "Geo170K, Gao et al. 2023 (G-LLaVA)"),
    "vision_flan(filtered)": Licence("not stated", "Vision-Flan, Xu et al. 2024; each of its 191 tasks keeps its own licence"),
    "LLaVA_Instruct_150K": Licence("CC-BY-4.0", f"LLaVA, Liu et al. 2023; made with GPT-4, whose terms apply; {_COCO}"),
    "localized_narratives": Licence("CC-BY-4.0", "Localized Narratives, Pont-Tuset et al. 2020 (Google Research)"),
    "lvis_instruct4v": Licence("not stated", f"LVIS-Instruct4V, Wang et al. 2023; made with GPT-4V; {_COCO}"),
}

CHEMISTRY = Licence("as the SMILES file", "Drawn with RDKit (BSD-3-Clause) from the SMILES given to render-chem; PubChem's are "
                                          "public domain, ChEMBL's CC BY-SA 3.0")  # fmt: skip
OWN = Licence("the user's own", "Local files of whoever built this directory")
UNKNOWN = Licence("see the source", "Not listed by this project: look at the card of the data set")


def licence_of(kind: str, repo: str, folder: str | None = None) -> Licence:
    """The licence of a source by its kind, its repository (or folder below raw/) and, for FineVision, its subset."""
    if repo == FINEVISION:
        known = SUBSETS.get(folder or "")
        return known or Licence(UNKNOWN.name, f"FineVision subset {folder}: see the origin that FineVision's card names")
    if repo.startswith("rendered/"):
        return CHEMISTRY
    if repo.startswith("local/"):
        from pipeline.sources import KINDS

        return REPOSITORIES.get(KINDS[kind].origin or "", OWN) if kind in KINDS else OWN
    return REPOSITORIES.get(repo, UNKNOWN)
