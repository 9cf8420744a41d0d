"""Data for detection and classification: data sets, augmentation, batches, evaluation."""
