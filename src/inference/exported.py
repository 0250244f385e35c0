"""Loads an exported folder (`LlavaForConditionalGeneration`) as the model that training, evaluation and the demo use."""

from pathlib import Path

from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from src.model.vision import HfVit
from src.model.vision_checkpoints import LoadedEncoder
from src.model.vlm import VLM
from src.model.weight_files import raise_mismatches, read_json
from src.runtime.errors import UserError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz")


class MergedLanguage(nn.Module):
    """A language model with merged adapters, with the attributes of `Language` that answering uses."""

    def __init__(self, llava: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.body, self.head, self.tokenizer = llava.model.language_model, llava.lm_head, tokenizer

    @property
    def base(self) -> nn.Module:
        return self.body

    @property
    def hidden(self) -> int:
        return self.body.config.hidden_size

    @property
    def embed(self) -> nn.Module:
        return self.body.get_input_embeddings()


def load_exported(folder: Path) -> VLM:
    """The model with encoder and projector in float32, the language model in its stored precision, and all parameters frozen.

    Raises `UserError` for a folder that holds pickles, is no export, or does not load completely.
    """
    reject_pickles(folder)
    settings = read_json(folder / "config.json")
    model_type = settings.get("model_type")
    if model_type != "llava":
        raise UserError(f"{folder}/config.json: model_type is {model_type!r}, not 'llava'; give a folder that `python -m src.export` wrote")
    try:
        llava, info = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}; export the run again") from None
    raise_mismatches({"lacks": list(info["missing_keys"]), "has unknown": list(info["unexpected_keys"])}, origin=str(folder))
    encoder = llava.model.vision_tower.float()
    size = encoder.config.image_size
    vision = HfVit(LoadedEncoder(encoder, size, tuple(processor.image_mean), tuple(processor.image_std)), size=size, layer=-1)
    template = settings.get("prompt_template", "plain")
    model = VLM(vision, llava.model.multi_modal_projector.float(), MergedLanguage(llava, tokenizer), template=template)
    return model.requires_grad_(False).eval()


def reject_pickles(folder: Path) -> None:
    names = sorted(path.name for path in folder.rglob("*") if path.suffix.lower() in PICKLE_SUFFIXES)
    if names:
        raise UserError(f"{folder} holds {names[0]}, a format that can carry code; only safetensors are loaded")
