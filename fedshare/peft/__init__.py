"""Parameter-efficient fine-tuning: which few parameters of a model are trained, shared, or added."""

from fedshare.peft.adapter import Adapter
from fedshare.peft.compacter import Compacter
from fedshare.peft.method import Method
from fedshare.peft.prompt import Prompt
from fedshare.peft.select import Bias, Full, Head
from fedshare.peft.shards import Shards

__all__ = ["Adapter", "Bias", "Compacter", "Full", "Head", "Method", "Prompt", "Shards"]
