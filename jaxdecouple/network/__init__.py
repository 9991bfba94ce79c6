"""A network is a sequence of layers; a stage is a part of it that lives on one device."""
