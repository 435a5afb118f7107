"""Tables, figures and the page of finished runs."""
