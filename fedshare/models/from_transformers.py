"""Any text model of Hugging Face's transformers (Wolf et al. 2020), for classification or language modelling."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.errors import UserError, brief, first_line
from fedshare.machine.extras import importing
from fedshare.models import check

TASKS = {"classification": "AutoModelForSequenceClassification", "language_model": "AutoModelForCausalLM"}


class Transformers(nn.Module):
    """Tokens, int64 ``[batch, length]`` and 0 for padding at the end, to logits.

    For the task `classification` they are ``[batch, classes]``: the zeros at a text's end become the model's own
    padding and are masked. For `language_model` they are ``[batch, length, classes]``: 0 is an ordinary token, because
    padding at the end cannot affect earlier positions; `classes` is `vocabulary`, and logits of further tokens are
    dropped.

    `name` is a folder that transformers has saved, or a name on the hub; unless `pretrained`, only its configuration is
    read, and the name of an architecture such as bert or gpt2 is enough. `options` override entries of the
    configuration. Weights are read only from safetensors, and no code that comes with a model is run.

    Names of parameters begin with ``model.``; a classifier's head is ``model.classifier`` or ``model.score``. Some
    architectures branch on the values of a flat mask, which `torch.func.vmap` does not support; BERT and similar models
    do not branch on a square mask, so they receive one.
    """

    def __init__(
        self,
        name: str,
        task: str,
        vocabulary: int,
        length: int,
        classes: int,
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check.positive("Transformers", vocabulary=vocabulary, length=length, classes=classes)
        check.choice("Transformers", "task", task, list(TASKS))
        if task == "language_model" and classes != vocabulary:
            raise UserError(f"Transformers: classes is {classes}; allowed is the vocabulary, {vocabulary}")
        with importing("transformers", "Transformers"):
            import transformers

            kind = getattr(transformers, TASKS[task])
        folder = Path(name).expanduser()
        source = {"local_files_only": True} if folder.is_dir() else {}
        place = str(folder) if source else name
        entries = dict(options or {}) | {"num_labels": classes} if task == "classification" else dict(options or {})
        try:
            if not pretrained and not source and name in transformers.CONFIG_MAPPING:
                config = transformers.AutoConfig.for_model(name, **entries)
            else:
                config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, **source, **entries)
            if options:
                with quiet(transformers.utils.logging):
                    known(name, options, type(config))
            fit(name, config, vocabulary, length)
            config.use_cache = False
            if task == "classification" and config.pad_token_id is None:
                end = config.eos_token_id
                config.pad_token_id = end if isinstance(end, int) and 0 <= end < config.vocab_size else 0
            if pretrained:
                with quiet(transformers.utils.logging):
                    self.model, report = kind.from_pretrained(
                        place,
                        config=config,
                        use_safetensors=True,
                        trust_remote_code=False,
                        output_loading_info=True,
                        **source,
                    )
                complete(name, self.model.base_model_prefix, report["missing_keys"])
            else:
                self.model = kind.from_config(config)
        except UserError:
            raise
        except Exception as error:  # many libraries raise here
            raise UserError(f"Transformers: {name}: {brief(first_line(error))}") from error
        self.model.float()  # some models are published in half precision
        self.task, self.classes, self.padding = task, classes, config.pad_token_id
        self._square: type | None = None  # the type of model that accepts a square mask
        if task == "classification":
            with quiet(transformers.utils.logging):
                self._square = type(self.model) if takes_square(self.model, vocabulary, length) else None

    def forward(self, tokens: Tensor) -> Tensor:
        if self.task == "language_model":
            return self.model(input_ids=tokens).logits[..., : self.classes]
        seen = (tokens != 0).flip(1).cumsum(1).flip(1) > 0
        seen = F.pad(seen[:, 1:], (1, 0), value=True)  # an empty text counts as one token, as in `TextTransformer`
        # peft's wrapper for prompt learning extends a flat mask, so it needs one.
        mask = square(seen) if type(self.model) is self._square else seen.long()
        return self.model(input_ids=tokens.masked_fill(~seen, self.padding), attention_mask=mask).logits


def square(seen: Tensor) -> Tensor:
    """Return a mask ``[batch, length]`` as an attention mask ``[batch, 1, length, length]``, one for every query."""
    return seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1)


def takes_square(model: nn.Module, vocabulary: int, length: int) -> bool:
    """Return whether a square mask gives the same bits as a flat one, and a mask makes a difference at all."""
    tokens = torch.arange(2 * length).view(2, length) % vocabulary
    seen = torch.ones(2, length, dtype=torch.bool)
    seen[1, (length + 1) // 2 :] = False
    training = model.training
    try:
        with torch.no_grad():
            masks = (seen.long(), square(seen), torch.ones_like(seen).long())
            flat, squared, unmasked = (model.eval()(input_ids=tokens, attention_mask=mask).logits for mask in masks)
        return bool(flat.equal(squared) and not flat.equal(unmasked))
    except Exception:  # of any type: most architectures accept flat masks only
        return False
    finally:
        model.train(training)


def known(name: str, options: Mapping[str, Any], kind: type) -> None:
    """Raise `UserError` if an option is not an entry of this configuration type, which would ignore it silently."""
    entries = {"attn_implementation", *vars(kind()), *getattr(kind, "attribute_map", {})}
    entries |= {key for key in dir(kind) if isinstance(getattr(kind, key, None), property)}
    if unknown := sorted(set(options) - entries):
        near = get_close_matches(unknown[0], entries, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"Transformers: options: {name} has no entry {unknown[0]}{hint}")


def fit(name: str, config: Any, vocabulary: int, length: int) -> None:
    """Raise `UserError` if a configuration is too small for these tokens, or for texts of this length."""
    if config.vocab_size < vocabulary:
        raise UserError(f"Transformers: {name} has {config.vocab_size} tokens; the data's vocabulary is {vocabulary}")
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and most < length:
        raise UserError(f"Transformers: {name} takes {most} tokens; the data's length is {length}")


def complete(name: str, body: str, missing: Iterable[str]) -> None:
    """Raise `UserError` if weights lack part of the model's body; a head may be new, and so may BERT's pooler."""
    if lacking := sorted(n for n in missing if n.startswith(f"{body}.") and ".pooler." not in n):
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise UserError(f"Transformers: {name} lacks the weights {lacking[0]}{more}")


@contextmanager
def quiet(logging: Any) -> Iterator[None]:
    """Suppress the progress bar and the report that each process would print when loading a model."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
