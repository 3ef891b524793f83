"""The account of a run: the bytes of tensors that travel, by group, beside what sharing the whole model would cost."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fedshare.payload import Payload


@dataclass(frozen=True)
class Account:
    groups: Mapping[str, str] = field(default_factory=dict)  # of each tensor that a model shares, such as head or bias
    whole: int = 0  # bytes of the whole model

    def row(
        self, uploads: Collection[Payload], dropped: Collection[Payload], downloads: Collection[Payload]
    ) -> dict[str, int | dict[str, int]]:
        """A round's part of a row of ``metrics.jsonl``: for each way the sum, by group, and the price of full sharing.

        A group is ``params/head``: what a payload calls its tensors, and what the model does. Uploads that were
        `dropped` are a group of their own: their names are anybody's.
        """
        row: dict[str, int | dict[str, int]] = {}
        for way, payloads, bad in (("up", uploads, dropped), ("down", downloads, ())):
            groups = self._by_group(payloads) | ({"dropped": sum(p.nbytes for p in bad)} if bad else {})
            row[f"bytes_{way}"] = sum(groups.values())
            row[f"bytes_{way}_by_group"] = groups
            row[f"bytes_{way}_full"] = self.whole * (len(payloads) + len(bad))
        return row

    def _by_group(self, payloads: Collection[Payload]) -> dict[str, int]:
        total = Counter[str]()
        for payload in payloads:
            for group, name, size in payload.sizes():
                total[f"{group}/{self.groups[name]}" if name in self.groups else group] += size
        return dict(sorted(total.items()))
