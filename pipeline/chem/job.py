"""What a rendered set is made with: the Job that workers get, its target formats and prompt wordings. No RDKit here."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.chem.strings import Limits
from pipeline.chem.styles import StyleSpec, parse_style

TARGETS = ("smiles", "kekule", "random", "selfies", "deepsmiles", "inchi")
PROMPTS: dict[str, tuple[str, ...]] = {
    "fixed": ("Give the {noun} of the molecule shown.",),
    "varied": (
        "Give the {noun} of the molecule shown.",
        "What is the {noun} of this chemical structure?",
        "Convert the structure in the image to its {noun}.",
        "Transcribe this molecule as a {noun}.",
        "Write the {noun} for the drawn compound.",
        "Read the chemical structure and answer with its {noun}.",
        "{noun}:",
        "Which molecule is drawn here? Answer as a {noun}.",
        "Parse the molecular diagram into a {noun}.",
        "OCR this chemical structure; output the {noun}.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a row's bytes depend on besides its molecule. Goes to the workers as JSON."""

    style: StyleSpec
    size: int = 1024
    seed: int = 0
    target: str = "smiles"
    prompts: tuple[str, ...] = ("Give the {noun} of the molecule shown.",)
    wrap: str = ""
    limits: Limits = field(default_factory=Limits)

    def to_json(self) -> dict[str, Any]:
        limits = asdict(self.limits) | {"elements": sorted(self.limits.elements)}
        return {
            "style": {"name": self.style.name, "text": self.style.text}, "size": self.size, "seed": self.seed,
            "target": self.target, "prompts": list(self.prompts), "wrap": self.wrap, "limits": limits,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Job":
        limits = data["limits"] | {"elements": frozenset(data["limits"]["elements"])}
        return Job(
            style=parse_style(data["style"]["text"], data["style"]["name"]), size=data["size"], seed=data["seed"],
            target=data["target"], prompts=tuple(data["prompts"]), wrap=data["wrap"], limits=Limits(**limits),
        )


def check_target(name: str) -> None:
    """Raises ValueError naming the package to install when a target's library is missing."""
    try:
        if name == "selfies":
            import selfies  # noqa: F401
        if name == "deepsmiles":
            import deepsmiles  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--target {name} needs the package {name}: pip install {name}") from error
