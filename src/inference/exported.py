"""An exported folder (`LlavaForConditionalGeneration`) back into the model that training, evaluation and the demo know."""

from pathlib import Path

from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from src.model.vision import HfVit
from src.model.vision_checkpoints import LoadedEncoder
from src.model.vlm import VLM
from src.model.weight_files import raise_mismatches, read_json
from src.runtime.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz")


class MergedLanguage(nn.Module):
    """The face of `Language` on a language model whose adapters are merged."""

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
    """Encoder and projector in float32, the language model as it is stored; a folder with pickles in it is refused."""
    reject_pickles(folder)
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "llava":
        raise UserError(f"{folder}/config.json is of model_type {kind!r}; an export of `python -m src.export` is 'llava'")
    try:
        llava, info = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        look = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    raise_mismatches({"lacks": list(info["missing_keys"]), "has unknown": list(info["unexpected_keys"])}, origin=str(folder))
    tower = llava.model.vision_tower.float()
    size = tower.config.image_size
    vision = HfVit(LoadedEncoder(tower, size, tuple(look.image_mean), tuple(look.image_std)), size=size, layer=-1)
    model = VLM(vision, llava.model.multi_modal_projector.float(), MergedLanguage(llava, tokenizer))
    return model.requires_grad_(False).eval()


def reject_pickles(folder: Path) -> None:
    found = sorted(path.name for path in folder.rglob("*") if path.suffix.lower() in PICKLES)
    if found:
        raise UserError(f"{folder} holds {found[0]}, a format that can carry code; only safetensors are loaded")
