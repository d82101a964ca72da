"""What every package needs and no robot: command lines, paths, JSON, safetensors, devices. Nothing here knows a policy."""
