"""Models: plain modules that map images ``[batch, channels, height, width]`` or tokens ``[batch, length]`` to logits.

Any `torch.nn.Module` can replace them. These have three properties that strategies and engines rely on: the last layer
is called `head`, only parameters hold state (unless BatchNorm is requested), and control flow in `forward` does not
depend on tensor values, so that `torch.func` and `torch.compile` can handle a model as it is. Exceptions: `Llama` uses
its embedding as its last layer instead of a `head`, and `Timm` and `Transformers` build their libraries' own models.
"""

from fedshare.models.cnn import CNN
from fedshare.models.from_timm import Timm
from fedshare.models.from_transformers import Transformers
from fedshare.models.linear import MLP, Logistic
from fedshare.models.llama import Llama
from fedshare.models.llama2c import Llama2c
from fedshare.models.resnet import ResNet
from fedshare.models.text_cnn import TextCNN
from fedshare.models.text_transformer import TextTransformer
from fedshare.models.vit import ViT

__all__ = [
    "CNN",
    "MLP",
    "Llama",
    "Llama2c",
    "Logistic",
    "ResNet",
    "TextCNN",
    "TextTransformer",
    "Timm",
    "Transformers",
    "ViT",
]
