"""What a configuration needs on given GPUs, without having them."""
