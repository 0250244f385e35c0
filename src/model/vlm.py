"""Image encoder -> projector -> language model.

Legend: B packed sequences, T tokens, N images, P patches, D vision width, H language width, S tokens whose successor is supervised,
K image tokens. Indices count the B x T tokens of all sequences, flattened.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.train import TrainConfig
from src.data.chat_prompt import ChatPrompter
from src.data.packing import Batch
from src.data.prompt import IMAGE, Prompter
from src.model.language import Language
from src.model.language_checkpoint import language_identity, load_language, load_tokenizer
from src.model.loss import token_losses
from src.model.projector import Projector
from src.model.vision import Vision, identity, load_vision
from src.runtime.errors import UserError

PROMPTERS = {"plain": Prompter, "chat": ChatPrompter}


class VLM(nn.Module):
    """The vision-language model: patches of each image take the place of its `<image>` tokens in the input of the language model.

    `template` is that of its prompts, plain or chat.
    """

    def __init__(self, vision: Vision, projector: Projector, language: Language, *, template: str = "plain"):
        super().__init__()
        self.vision, self.projector, self.language, self.template = vision, projector, language, template
        self.image_id = language.tokenizer.convert_tokens_to_ids(IMAGE)
        self.weights: dict[str, dict[str, str]] = {}  # part -> id, revision and sha256 of its stored weights
        self.inherited: set[str] = set()  # parameters that a checkpoint has replaced: they differ from the stored weights

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy and source number of every supervised token: (losses_S, sources_S)."""
        e_BTH = self.embed(batch.input_ids_BT, batch.images_NCHW, batch.image_token_index_K)
        h_SH = self.language.loss_states(e_BTH, batch.position_ids_BT, batch.cu_seqlens, batch.loss_index_S)
        target_index_S = batch.loss_index_S + 1
        targets_S = batch.labels_BT.flatten()[target_index_S]
        losses_S = token_losses(h_SH, self.language.head, targets_S, fast=self.language.fast)
        return losses_S, batch.sources_BT.flatten()[target_index_S]

    def embed(self, input_ids_BT: Tensor, images_NCHW: Tensor, image_token_index_K: Tensor | None = None) -> Tensor:
        """Token embeddings e_BTH in which the projected patches of each image replace its `<image>` placeholders.

        `image_token_index_K` holds the placeholders; without it they are searched for, and on a GPU the host waits for the result.
        Raises `ValueError` where placeholders and patches differ in number.
        """
        e_BTH = self.language.embed(input_ids_BT)
        if image_token_index_K is None:
            image_token_index_K = (input_ids_BT.flatten() == self.image_id).nonzero()[:, 0]
        if len(image_token_index_K) != len(images_NCHW) * self.vision.num_patches:
            raise ValueError(
                f"{len(image_token_index_K)} <image> tokens for {len(images_NCHW)} images of {self.vision.num_patches} patches; "
                "the prompter and the image encoder disagree on num_patches"
            )
        if len(images_NCHW):
            patches_KH = self.encode_images(images_NCHW).flatten(0, 1).to(e_BTH.dtype)
            return e_BTH.flatten(0, 1).index_copy(0, image_token_index_K, patches_KH).view_as(e_BTH)
        if not torch.is_grad_enabled():
            return e_BTH
        # A text-only batch runs the vision part too, with weight 0: DDP needs a gradient of every parameter on every rank.
        size = self.vision.size
        dummy = torch.zeros((1, 3, size, size), dtype=torch.uint8, device=input_ids_BT.device)
        return e_BTH + 0.0 * self.encode_images(dummy).mean().to(e_BTH.dtype)

    def encode_images(self, images_NCHW: Tensor) -> Tensor:
        """uint8 pixels -> projected patches e_NPH."""
        return self.projector(self.vision(images_NCHW))

    def parts(self) -> dict[str, nn.Module]:
        return {"vision": self.vision, "projector": self.projector, "language": self.language}

    def prompter(self, *, budget: int) -> Prompter:
        return PROMPTERS[self.template](self.language.tokenizer, patches=self.vision.num_patches, budget=budget)


def build_vlm(config: TrainConfig) -> VLM:
    """The model of a configuration with its stored weights. Parts with learning rate 0 are frozen.

    LoRA and projector are initialised from `config.seed`. Raises `UserError` for a language model whose attention window is shorter
    than `data.max_seq_len`, and for a tokenizer whose chat template cannot be used.
    """
    settings = config.language
    if config.prompt.template == "chat":  # before the weights are loaded
        ChatPrompter(load_tokenizer(settings.path, revision=settings.revision, key="language.path"), patches=1, budget=16)
    torch.manual_seed(config.seed)
    vision = load_vision(config.vision)
    base, tokenizer = load_language(settings.path, revision=settings.revision, dtype=getattr(torch, settings.dtype))
    window = getattr(base.config, "sliding_window", None)
    if window and window < config.data.max_seq_len:
        raise UserError(
            f"language.path={settings.path} uses a sliding attention window of {window} tokens, which this code does not implement; set "
            f"data.max_seq_len={window} or less"
        )
    model = assemble_vlm(vision, base, tokenizer, config)
    model.weights = {
        "vision": identity(config.vision),
        "language": language_identity(settings.path, revision=settings.revision),
    }
    return model


def assemble_vlm(vision: Vision, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: TrainConfig) -> VLM:
    """Adds LoRA adapters and a projector, which start at random, and applies the learning rates of 0 and activation checkpointing."""
    checkpointing = config.trainer.activation_checkpointing
    language = Language(base, tokenizer, config.language.lora, fast=config.language.fast, activation_checkpointing=checkpointing)
    projector = Projector(config.projector, vision_width=vision.width, language_width=language.hidden)
    model = VLM(vision, projector, language, template=config.prompt.template)
    for name, part in model.parts().items():
        if getattr(config.optim.lr, name) == 0:
            part.requires_grad_(False)
    vision.set_activation_checkpointing(checkpointing == "full")
    return model


def parameter_summary(model: VLM, config: TrainConfig) -> list[dict]:
    """One row per part: number of parameters, of trainable ones, peak learning rate, and origin of the weights."""
    vision = config.vision.path or config.vision.architecture
    origin = {"vision": vision, "projector": config.projector.kind, "language": config.language.path}
    origin = {
        name: f"{weights}, then {config.init}" if any(inherited.startswith(f"{name}.") for inherited in model.inherited) else weights
        for name, weights in origin.items()
    }
    return [
        {
            "part": name,
            "parameters": sum(p.numel() for p in part.parameters()),
            "trainable": sum(p.numel() for p in part.parameters() if p.requires_grad),
            "lr": getattr(config.optim.lr, name),
            "weights": origin[name],
        }
        for name, part in model.parts().items()
    ]


def summary_table(parts: list[dict]) -> str:
    """`parameter_summary` as text."""
    lines = [f"{'part':<11}{'parameters':>15}{'trainable':>15}{'lr':>10}  weights"]
    for part in parts:
        rate = part["lr"] if part["trainable"] else "frozen"
        lines.append(f"{part['part']:<11}{part['parameters']:>15,}{part['trainable']:>15,}{rate:>10}  {part['weights']}")
    return "\n".join(lines)
