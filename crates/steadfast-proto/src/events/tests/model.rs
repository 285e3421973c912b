//! EV5 exhaustively.
