"""All that the file of a method needs: base classes, needs, what a method sees and returns, and the error for users.

This is the stable interface of vlmprune for authors of methods; docs/adding-a-method.md says what may change when. A
method imports from here and from `torch`, and from no other module of vlmprune.
"""

from vlmprune.core.act import Act, At
from vlmprune.core.budget import Budget, Keep, resolve_keep
from vlmprune.core.errors import UserError
from vlmprune.core.fusion import Fusion
from vlmprune.core.method import DecoderMethod, Method, PixelMethod, Scorer
from vlmprune.core.needs import (
    USED,
    Attention,
    DecoderNeed,
    DecoderReading,
    Depth,
    EncoderLayer,
    EncoderNeed,
    EncoderReading,
    Need,
    PromptNeed,
    PromptReading,
    Tower,
)
from vlmprune.core.options import AtLeast, NotNegative, Positive, Share, ShareBelowOne
from vlmprune.core.roles import Fusing, MergesInside, Merging, Observes, OrdersParts
from vlmprune.core.selectors import ascending, top_k
from vlmprune.core.shape import Load
from vlmprune.core.signals import (
    Alignment,
    ClsAttention,
    DecoderKeys,
    DecoderStates,
    EncoderKeys,
    EnteredEmbeddings,
    Features,
    HiddenStates,
    LastQueryAttention,
    LayerInput,
    LayerOutput,
    MlpInput,
    Pixels,
    PromptText,
    ReceivedAttention,
    RotaryGain,
    TextQueryAttention,
    TextSelfAttention,
    TowerFeatures,
    VisualQueryAttention,
)
from vlmprune.core.view import Aligned, Grid, ImageView, Merged, ModelInfo, Selection, Tokens, TowerRows

__all__ = [
    "USED",
    "Act",
    "Aligned",
    "Alignment",
    "At",
    "AtLeast",
    "Attention",
    "Budget",
    "ClsAttention",
    "DecoderKeys",
    "DecoderMethod",
    "DecoderNeed",
    "DecoderReading",
    "DecoderStates",
    "Depth",
    "EncoderKeys",
    "EncoderLayer",
    "EncoderNeed",
    "EncoderReading",
    "EnteredEmbeddings",
    "Features",
    "Fusing",
    "Fusion",
    "Grid",
    "HiddenStates",
    "ImageView",
    "Keep",
    "LastQueryAttention",
    "LayerInput",
    "LayerOutput",
    "Load",
    "Merged",
    "MergesInside",
    "Merging",
    "Method",
    "MlpInput",
    "ModelInfo",
    "Need",
    "NotNegative",
    "Observes",
    "OrdersParts",
    "PixelMethod",
    "Pixels",
    "Positive",
    "PromptNeed",
    "PromptReading",
    "PromptText",
    "ReceivedAttention",
    "RotaryGain",
    "Scorer",
    "Selection",
    "Share",
    "ShareBelowOne",
    "TextQueryAttention",
    "TextSelfAttention",
    "Tokens",
    "Tower",
    "TowerFeatures",
    "TowerRows",
    "UserError",
    "VisualQueryAttention",
    "ascending",
    "resolve_keep",
    "top_k",
]  # fmt: skip
