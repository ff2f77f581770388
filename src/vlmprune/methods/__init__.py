"""The methods, one file each, in folders by the stage where they act."""
