"""The benchmark of the autoencoder: training loss after so many updates, and after so much time."""
