"""The account of a run: the bytes of tensors sent, by group, and what sharing the whole model would cost."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedshare.payload import Payload
from fedshare.state import State


@dataclass(frozen=True)
class Account:
    groups: Mapping[str, str] = field(default_factory=dict)  # of each shared tensor of the model, such as head or bias
    whole: int = 0  # bytes of the whole model
    notes: Callable[[Mapping[int, Payload]], dict[str, Any]] = lambda _: {}  # a row's remarks on downloads

    def round(
        self,
        number: int,
        uploads: Mapping[int, Payload],
        dropped: Mapping[int, Payload],
        downloads: Mapping[int, Payload],
        state: State,
    ) -> dict[str, Any]:
        """Return the traffic of the round `number`, from what each client sent and was sent, and notes on downloads.

        Downloads are noted of clients whose uploads were used. `state` is the memory after the round.
        """
        notes = self.notes({client: downloads[client] for client in uploads})
        return self.row(uploads.values(), dropped.values(), downloads.values()) | notes

    def row(
        self, uploads: Collection[Payload], dropped: Collection[Payload], downloads: Collection[Payload]
    ) -> dict[str, int | dict[str, int]]:
        """Return the row's traffic each way: the total, the bytes by group, and the cost of sharing the whole model.

        A group is ``params/head``: the payload's group of tensors, and the model's. Uploads that were `dropped` form a
        group of their own, because their tensor names are arbitrary.
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
        times = Counter(map(id, payloads))  # among peers, the same upload goes to many
        for payload in {id(one): one for one in payloads}.values():
            for group, name, size in payload.sizes():
                whole = size * times[id(payload)]
                total[f"{group}/{self.groups[name]}" if name in self.groups else group] += whole
        return dict(sorted(total.items()))
