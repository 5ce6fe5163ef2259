"""What tests share: the oracle, the zoo of models it is tried on, and the Hugging Face cases."""
