"""The engine side: starting OneFlow, the device, configuration, pictures."""
