"""Generative adversarial training, recorded, replayed and differentiated backwards."""
