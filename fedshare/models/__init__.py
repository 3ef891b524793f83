"""Models: plain modules that map images ``[batch, channels, height, width]`` or tokens ``[batch, length]`` to logits.

Any `torch.nn.Module` will do in their place. These keep three promises that strategies and engines lean on: the last
layer is called `head`, nothing but a parameter is remembered (unless BatchNorm is asked for), and nothing in `forward`
depends on the values it meets, so that `torch.func` and `torch.compile` can take a model as it is. Exceptions: `Llama`
has no layer for `head` but its embedding, and what `Timm` and `Transformers` give is as their makers want it.
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
