"""Fine-tune any timm or torchvision image model.

Example:
    >>> from headstart import ImageData, Learner
    >>> learner = Learner("resnet18", ImageData.from_folder("flowers", image_size=64))  # doctest: +SKIP
    >>> history = learner.fit(5, lr=5e-4, head_lr_mult=10)  # doctest: +SKIP
"""

from headstart.callbacks.reporting import CSVLogger, ProgressBar
from headstart.callbacks.resizing import ProgressiveResize
from headstart.callbacks.saving import ModelCheckpoint
from headstart.callbacks.schedule import LearningRateScheduler, LRSchedule, ReduceLROnPlateau
from headstart.callbacks.stopping import EarlyStopping, TerminateOnNaN
from headstart.data.cache import Cache
from headstart.data.image_data import ImageData
from headstart.data.preprocessing import Preprocessing
from headstart.errors import BackboneError, CheckpointError, ConfigError, DataError, HeadstartError
from headstart.insight.predictions import Predictions
from headstart.learner import Learner
from headstart.model.head import Head
from headstart.training.callback import Callback, Order
from headstart.training.history import History
from headstart.training.run import Run, StopTraining
from headstart.training.schedules import Progress, constant, cosine, linear, one_cycle, step_decay
from headstart.version import VERSION as __version__

__all__ = [
    "BackboneError",
    "CSVLogger",
    "Cache",
    "Callback",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EarlyStopping",
    "Head",
    "HeadstartError",
    "History",
    "ImageData",
    "LRSchedule",
    "Learner",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "Order",
    "Predictions",
    "Preprocessing",
    "Progress",
    "ProgressBar",
    "ProgressiveResize",
    "ReduceLROnPlateau",
    "Run",
    "StopTraining",
    "TerminateOnNaN",
    "__version__",
    "constant",
    "cosine",
    "linear",
    "one_cycle",
    "step_decay",
]
