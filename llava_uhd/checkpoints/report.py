"""Conversion report: the outcome for every tensor."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Report:
    """Conversion report; every source tensor is in exactly one of the lists.

    Attributes:
        out: output folder.
        settings: resolved model settings: layout, levels, precision of window corners and the like.
        assumed: settings that no source specifies.
        used: converted tensors: original name and HF name.
        derived: HF tensors that are split from, or concatenated from, several original ones.
        ignored: unused tensors, with the reason, and whether they are kept for the export.
        missing: HF tensors that no source has, as allowed by the user.
        num_bytes: size of the written weights in bytes.
    """

    out: str
    settings: dict[str, Any] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    used: list[dict[str, Any]] = field(default_factory=list)
    derived: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    num_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """Format the report: counts, and the ignored tensors by reason."""
        lines = [f"{name.replace('_', ' ')}: {value}" for name, value in self.settings.items()]
        lines += [f"assumed: {what}" for what in self.assumed]
        lines.append(f"converted: {len(self.used)} tensors; split or concatenated: {len(self.derived)}")
        by_reason: dict[str, list[dict[str, Any]]] = {}
        for entry in self.ignored:
            reason = entry["reason"] + (" (kept for the export)" if entry["kept"] else "")
            by_reason.setdefault(reason, []).append(entry)
        for reason, entries in by_reason.items():
            parameters = sum(entry["parameters"] for entry in entries)
            lines.append(f"unused: {len(entries)} tensors, {parameters:,} parameters: {reason}")
        lines += [f"missing, as allowed: {name}" for name in self.missing]
        lines.append(f"written: {self.num_bytes:,} bytes of weights to {self.out}")
        return lines
