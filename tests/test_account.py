"""The account of bytes, by hand."""

import torch

from fedshare.payload import Payload
from fedshare.rounds.account import Account


def payload(**groups: dict[str, int]) -> Payload:
    return Payload({group: {name: torch.zeros(n) for name, n in sizes.items()} for group, sizes in groups.items()})


def test_groups_and_the_price_of_full_sharing_by_hand() -> None:
    account = Account({"w": "body", "b": "bias"}, whole=1000)
    up = [payload(params={"w": 3, "b": 1}, critical={"w": 2, "count": 1}), payload(params={"w": 3, "b": 1})]
    down = [payload(params={"w": 5})]
    assert account.row(up, [], down) == {
        "bytes_up": 44,
        "bytes_up_by_group": {"critical": 4, "critical/body": 8, "params/bias": 8, "params/body": 24},
        "bytes_up_full": 2000,
        "bytes_down": 20,
        "bytes_down_by_group": {"params/body": 20},
        "bytes_down_full": 1000,
    }


def test_names_in_dropped_uploads_are_nobodys_business() -> None:
    bad = Payload({f"\x1b[31m{i}": {"x": torch.zeros(1)} for i in range(1000)} | {"odd": 3})  # type: ignore[dict-item]
    row = Account(whole=10).row([payload(params={"w": 1})], [bad], [])
    assert row["bytes_up"] == 4004
    assert row["bytes_up_by_group"] == {"params": 4, "dropped": 4000}
    assert row["bytes_up_full"] == 20
