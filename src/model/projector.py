"""Projector from patch features to language embeddings.

Legend: N images, P patches, D width of a patch feature, H width of the language model.
"""

from torch import Tensor, nn

from src.config.train import ProjectorConfig


class Projector(nn.Module):
    """v_NPD -> e_NPH. `mlp` is Linear-GELU-Linear as in LLaVA-1.5 (arXiv 2310.03744). Layers have the names of transformers' Llava."""

    def __init__(self, config: ProjectorConfig, *, vision_width: int, language_width: int):
        super().__init__()
        inner = language_width if config.kind == "linear" else config.hidden or language_width
        self.linear_1 = nn.Linear(vision_width, inner)
        self.linear_2 = nn.Linear(inner, language_width) if config.kind == "mlp" else None
        self.act = nn.GELU()

    def forward(self, v_NPD: Tensor) -> Tensor:
        e_NPH = self.linear_1(v_NPD)
        return e_NPH if self.linear_2 is None else self.linear_2(self.act(e_NPH))
