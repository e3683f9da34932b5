"""The BehaveGPT model, registered with transformers' Auto classes on import."""

from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification

from behavegpt.model.behavegpt import BehaveGPTForBehaviorPrediction, BehaveGPTModel, BehaviorOutput
from behavegpt.model.cache import EventCache
from behavegpt.model.config import BehaveGPTConfig

AutoConfig.register("behavegpt", BehaveGPTConfig, exist_ok=True)
AutoModel.register(BehaveGPTConfig, BehaveGPTModel, exist_ok=True)
AutoModelForTokenClassification.register(BehaveGPTConfig, BehaveGPTForBehaviorPrediction, exist_ok=True)

__all__ = ["BehaveGPTConfig", "BehaveGPTForBehaviorPrediction", "BehaveGPTModel", "BehaviorOutput", "EventCache"]
