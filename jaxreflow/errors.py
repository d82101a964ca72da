"""The package's error types: every message names the thing, what was expected, what was found, and what to do."""


class JaxReflowError(Exception):
    """Base of every error that jaxreflow raises on purpose."""


class ConfigError(JaxReflowError, ValueError):
    """A configuration field is unknown, inconsistent, or asks for what cannot be honoured."""


class CheckpointError(JaxReflowError):
    """A checkpoint's files are missing, damaged, or do not fit the configuration."""


class DatasetError(JaxReflowError):
    """A dataset's files are missing, damaged, of an unknown version, or do not fit the policy."""


class ProcessorError(JaxReflowError):
    """Pre- or post-processing cannot be built: statistics, features or tokenizer are missing or wrong."""


class TrainingError(JaxReflowError):
    """A run cannot start, continue or finish: non-finite loss, wrong batch size, foreign output directory."""


class SimulationError(JaxReflowError):
    """A simulator, its renderer or its scripted expert is missing or fails."""


class DeviceError(JaxReflowError):
    """The devices at hand do not do: their memory is not enough, or JAX has no such platform here."""


class StorageError(JaxReflowError, OSError):
    """A folder in an object store is missing, or cannot be read or written."""


class ServeError(JaxReflowError):
    """A policy server cannot start or be reached, or a message is not of the kind that it speaks."""


class PublishError(JaxReflowError):
    """A policy cannot be published: it would act on no other machine, or the hub refuses."""
