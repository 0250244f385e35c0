"""Image encoder -> projector -> language model.

Legend: B rows, T tokens, N images, P patches, D vision width, H language width, S supervised positions,
K image tokens.
"""

import torch
from torch import Tensor, nn

from src.config.train import TrainConfig
from src.data.packing import Batch
from src.data.prompt import IMAGE, Prompter
from src.model.fast.attention import PackedSequences
from src.model.fast.recompute import set_activation_checkpointing
from src.model.language import Language
from src.model.language_checkpoint import language_identity, load_language
from src.model.loss import token_losses
from src.model.projector import Projector
from src.model.vision import Vision, identity, load_vision
from src.runtime.errors import UserError


class VLM(nn.Module):
    def __init__(self, vision: Vision, projector: Projector, language: Language):
        super().__init__()
        self.vision, self.projector, self.language = vision, projector, language
        self.image_id = language.tokenizer.convert_tokens_to_ids(IMAGE)
        self.weights: dict[str, dict[str, str]] = {}  # part -> id, revision and sha256 of its stored weights
        self.inherited: set[str] = set()  # parameters that came from a checkpoint: they are no longer those of the stored weights

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every supervised token: (losses_S, sources_S)."""
        e_BTH = self.embed(batch.input_ids_BT, batch.images_NCHW, batch.image_token_index_K)
        h_SH = self.language.states(e_BTH, batch.position_ids_BT, PackedSequences.of(batch.cu_seqlens, e_BTH.device), batch.loss_index_S)
        next_S = batch.loss_index_S + 1
        losses_S = token_losses(h_SH, self.language.head, batch.labels_BT.flatten()[next_S])
        return losses_S, batch.sources_BT.flatten()[next_S]

    def embed(self, input_ids_BT: Tensor, images_NCHW: Tensor, image_token_index_K: Tensor | None = None) -> Tensor:
        """Token embeddings with each run of <image> placeholders replaced by the projected patches of its image.

        `image_token_index_K` are the placeholders in the line of all B x T tokens; without them they are looked for.
        """
        e_BTH = self.language.embed(input_ids_BT)
        image_token_index_K = (
            (input_ids_BT.flatten() == self.image_id).nonzero()[:, 0] if image_token_index_K is None else image_token_index_K
        )
        if len(image_token_index_K) != len(images_NCHW) * self.vision.num_patches:
            raise ValueError(
                f"{len(image_token_index_K)} <image> tokens for {len(images_NCHW)} images of {self.vision.num_patches} patches"
            )
        if len(images_NCHW):
            patches_KH = self.see(images_NCHW).flatten(0, 1).to(e_BTH.dtype)
            return e_BTH.flatten(0, 1).index_copy(0, image_token_index_K, patches_KH).view_as(e_BTH)
        if not torch.is_grad_enabled():
            return e_BTH
        # A text-only batch still runs the vision part, with weight 0: under DDP every rank must touch every parameter.
        size = self.vision.size
        dummy = torch.zeros((1, 3, size, size), dtype=torch.uint8, device=input_ids_BT.device)
        return e_BTH + 0.0 * self.see(dummy).mean().to(e_BTH.dtype)

    def see(self, images_NCHW: Tensor) -> Tensor:
        """Projected patches e_NPH."""
        return self.projector(self.vision(images_NCHW))

    def parts(self) -> dict[str, nn.Module]:
        return {"vision": self.vision, "projector": self.projector, "language": self.language}

    def prompter(self, *, budget: int) -> Prompter:
        return Prompter(self.language.tokenizer, patches=self.vision.num_patches, budget=budget)


def build_vlm(config: TrainConfig) -> VLM:
    """The three parts from their weights, frozen where their learning rate is 0. LoRA and projector start from `config.seed`."""
    torch.manual_seed(config.seed)
    vision = load_vision(config.vision)
    stored = config.language
    base, tokenizer = load_language(stored.path, revision=stored.revision, dtype=getattr(torch, stored.dtype))
    window = getattr(base.config, "sliding_window", None)
    if window and window < config.data.max_seq_len:
        raise UserError(
            f"language.path={stored.path} attends to the last {window} tokens only, which attention over packed samples does not; set "
            f"data.max_seq_len={config.data.max_seq_len} to that or less, so that no sample is longer"
        )
    language = Language(base, tokenizer, stored.lora)
    projector = Projector(config.projector, width=vision.width, hidden=language.hidden)
    model = VLM(vision, projector, language)
    for name, part in model.parts().items():
        if getattr(config.optim.lr, name) == 0:
            part.requires_grad_(False)
    model.weights = {
        "vision": identity(config.vision),
        "language": language_identity(stored.path, revision=stored.revision),
    }
    vision.recompute(config.trainer.activation_checkpointing == "full")
    set_activation_checkpointing(language.base, config.trainer.activation_checkpointing)
    return model


def parameter_summary(model: VLM, config: TrainConfig) -> list[dict]:
    """Per part its parameters, the trainable ones, the peak learning rate and where its weights come from."""
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
    """What is frozen and what trains, for people."""
    lines = [f"{'part':<11}{'parameters':>15}{'trainable':>15}{'lr':>10}  weights"]
    for part in parts:
        rate = part["lr"] if part["trainable"] else "frozen"
        lines.append(f"{part['part']:<11}{part['parameters']:>15,}{part['trainable']:>15,}{rate:>10}  {part['weights']}")
    return "\n".join(lines)
