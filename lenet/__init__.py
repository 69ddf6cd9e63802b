"""LeNet on OneFlow: engine start, device, ranks, configuration, training, prediction, export."""
