"""What a trained model attends to and predicts: records of its attentions, and drawings of them."""
