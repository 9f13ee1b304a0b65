// Puts one thread of this process to sleep for a while, from outside: a timer signals that thread,
// and the handler sleeps. Only for measuring a peer whose dispatcher would spin on a core that its
// own workers need.
#define _GNU_SOURCE
#include <signal.h>
#include <time.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static timer_t timer;
static volatile long hold_ns;

static void sleep_here(int signal_number) {
  (void)signal_number;
  const struct timespec duration = {hold_ns / 1000000000, hold_ns % 1000000000};
  nanosleep(&duration, NULL);
}

// Chooses the thread. 0, or -1 with errno set.
int hold_prepare(int thread_id) {
  struct sigaction action = {.sa_handler = sleep_here, .sa_flags = SA_RESTART};
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2};
  event.sigev_notify_thread_id = thread_id;
  if (sigaction(SIGUSR2, &action, NULL) != 0) return -1;
  return timer_create(CLOCK_MONOTONIC, &event, &timer);
}

// In 200 us from now, holds the thread for `ns`; the call that it is to dispatch has begun by then.
int hold_arm(long ns) {
  const struct itimerspec when = {.it_value = {.tv_nsec = 200000}};
  hold_ns = ns;
  return timer_settime(timer, 0, &when, NULL);
}

// Cancels what has not begun.
int hold_cancel(void) {
  const struct itimerspec never = {0};
  return timer_settime(timer, 0, &never, NULL);
}
