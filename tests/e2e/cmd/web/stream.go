// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// tickBytes is sent every tick, so that a stream lasts long enough to be disturbed.
const (
	tickBytes = 64 << 10
	tick      = 10 * time.Millisecond
)

// stream sends "bytes" bytes: the numbers from 0 on, 8 bytes each, big endian.
func stream(w http.ResponseWriter, r *http.Request) {
	total, err := strconv.ParseUint(r.URL.Query().Get("bytes"), 10, 64)
	if err != nil || total%8 != 0 {
		http.Error(w, "bytes: want a multiple of 8", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatUint(total, 10))
	clock := time.NewTicker(tick)
	defer clock.Stop()
	buf := make([]byte, 0, tickBytes)
	for n := uint64(0); n < total/8; {
		buf = buf[:0]
		for ; n < total/8 && len(buf) < tickBytes; n++ {
			buf = binary.BigEndian.AppendUint64(buf, n)
		}
		if _, err := w.Write(buf); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		<-clock.C
	}
}

// fetch reads a stream and checks each of its bytes.
func fetch(ctx context.Context, log *slog.Logger, from string) error {
	u, err := url.Parse(from)
	if err != nil {
		return err
	}
	want, err := strconv.ParseUint(u.Query().Get("bytes"), 10, 64)
	if err != nil {
		return fmt.Errorf("bytes in %s: %w", from, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "stream begins", "status", resp.Status)
	n, err := check(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, want, err)
	}
	if n != want {
		return fmt.Errorf("got %d of %d bytes", n, want)
	}
	log.InfoContext(ctx, "stream is whole", "bytes", n)
	return nil
}

func check(r io.Reader) (n uint64, err error) {
	in := bufio.NewReaderSize(r, 1<<20)
	var word [8]byte
	for i := uint64(0); ; i++ {
		if _, err := io.ReadFull(in, word[:]); errors.Is(err, io.EOF) {
			return i * 8, nil
		} else if err != nil {
			return i * 8, err
		}
		if got := binary.BigEndian.Uint64(word[:]); got != i {
			return i * 8, fmt.Errorf("word %d is %d", i, got)
		}
	}
}
