"""What streamcore is measured against, each in its best batched mode, all with the same small interface."""
