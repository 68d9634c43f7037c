"""The demo: embedded servers, sample data and live writers; tests share them."""
